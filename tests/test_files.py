"""A file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import io
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pytest
import torch
from disk_for_tests import largest_file
from torch import nn

from avalanche_compress import ArchiveError, TaskNetwork, load_archive, save_archive
from avalanche_compress.files import write_atomically

OLD, NEW = b"old" * 1000, b"new" * 200_000


@pytest.fixture
def path(tmp_path):
    """A file that is there already."""
    write_atomically(tmp_path / "file", OLD)
    return tmp_path / "file"


def assert_untouched(path):
    assert path.read_bytes() == OLD
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_new_file_replaces_the_old_one(path):
    assert write_atomically(path, NEW[:7], b"", NEW[7:]) == len(NEW)
    assert path.read_bytes() == NEW
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_the_file_is_on_the_disk_before_it_gets_its_name_and_its_name_after(path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync

    def watched_fsync(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append("sync folder" if folder else "sync file")
        fsync(descriptor)

    def watched_replace(*names):
        calls.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_atomically(path, NEW)
    assert calls == ["sync file", "rename", "sync folder"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_failed_call_leaves_the_old_file_and_the_error_says_which_and_why(
    call, code, path, monkeypatch
):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            write_atomically(path, NEW)
    assert caught.value.errno == code
    assert str(path) in str(caught.value)
    assert_untouched(path)


@pytest.mark.parametrize(
    ("code", "raised"), [(errno.EIO, True), (errno.EINVAL, False), (errno.EACCES, False)]
)
def test_a_folder_that_cannot_be_synced_is_an_error_only_if_the_disk_failed(
    code, raised, path, monkeypatch
):
    fsync = os.fsync

    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    if raised:
        with pytest.raises(OSError, match=str(path)):
            write_atomically(path, NEW)
    else:
        write_atomically(path, NEW)
    assert path.read_bytes() == NEW


def test_a_file_that_outgrows_its_limit_is_named_and_the_old_one_stays(path):
    with largest_file(len(NEW) // 2), pytest.raises(OSError, match="too large") as caught:
        write_atomically(path, NEW)
    assert caught.value.errno == errno.EFBIG
    assert str(path) in str(caught.value)
    assert_untouched(path)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system of 64 kB in memory, where that is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", f"size=64k,{options}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            pytest.skip("nothing can be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, timeout=10)


def test_a_full_disk_is_named_and_the_old_file_stays(mounted):
    path = mounted("rw") / "file"
    write_atomically(path, OLD)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, NEW)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert_untouched(path)


def test_a_file_system_that_is_read_only_is_named(mounted):
    path = mounted("rw") / "file"
    write_atomically(path, OLD)
    subprocess.run(["mount", "-o", "remount,ro", str(path.parent)], check=True, timeout=10)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_atomically(path, NEW)
    assert str(path) in str(caught.value)
    assert_untouched(path)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_is_read_only_is_named(path):
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=str(path)):
            write_atomically(path, NEW)
        assert_untouched(path)
    finally:
        path.parent.chmod(0o700)


@pytest.mark.parametrize("place", ["a file/inside", "x" * 300])
def test_a_path_that_cannot_be_is_named(place, tmp_path):
    (tmp_path / "a file").write_bytes(OLD)
    with pytest.raises(OSError, match="could not write") as caught:
        write_atomically(tmp_path / place, NEW)
    assert str(tmp_path / place) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a file"]


def test_a_writer_that_is_killed_leaves_one_whole_file_or_another(path):
    script = """
        import itertools, sys
        from avalanche_compress.files import write_atomically
        print("ready", flush=True)
        for number in itertools.count():
            write_atomically(sys.argv[1], bytes([number % 256]) * 300_000)
    """
    moments = random.Random(0)
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    seen = set()
    for _ in range(4):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            for _ in range(20):
                time.sleep(moments.uniform(0, 0.004))
                content = path.read_bytes()  # a reader never sees half of one
                assert content == OLD or content == content[:1] * 300_000
            process.kill()
        content = path.read_bytes()
        assert content == content[:1] * 300_000
        seen.add(content[0])
        left = [entry.name for entry in path.parent.iterdir() if entry != path]
        assert all(name.startswith(".file.") and name.endswith(".tmp") for name in left)
        write_atomically(path, OLD)  # what a killed writer leaves does not stand in the way
        assert path.read_bytes() == OLD
    assert len(seen) > 1


# ---------------------------------------------------------------------------- what is there already


@pytest.mark.parametrize("there", [True, False], ids=["file", "dangling"])
def test_of_a_symbolic_link_the_target_is_written(there, tmp_path):
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    if there:
        write_atomically(target, OLD)
    link.symlink_to(os.path.join("elsewhere", "file"))
    write_atomically(link, NEW)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_bytes() == link.read_bytes() == NEW
    assert [entry.name for entry in target.parent.iterdir()] == ["file"]


def test_a_symbolic_link_to_itself_is_named(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match=str(tmp_path / "link")):
        write_atomically(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_the_mode_of_the_file_before_is_kept_from_the_first_byte_on(mode, path, monkeypatch):
    seen, fsync = [], os.fsync

    def watched(descriptor):
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    path.chmod(mode)
    monkeypatch.setattr(os, "fsync", watched)
    write_atomically(path, NEW)
    assert stat.S_IMODE(path.stat().st_mode) == seen[0] == mode
    assert path.read_bytes() == NEW


def test_a_new_file_has_the_mode_that_the_user_gives_new_files(tmp_path):
    (tmp_path / "other").touch()
    write_atomically(tmp_path / "file", NEW)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_a_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(pipe, NEW, b"end")
    reader.join(timeout=10)
    assert read == [NEW + b"end"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="this system has no such device")
def test_a_device_is_written_into_and_stays_a_device(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    assert write_atomically(tmp_path / "link", OLD) == write_atomically("/dev/null", OLD)
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)
    assert (tmp_path / "link").is_symlink()


def test_what_cannot_be_opened_is_named_and_stays(tmp_path):
    name = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(name))
        with pytest.raises(OSError, match=str(name)):
            write_atomically(name, NEW)
        assert stat.S_ISSOCK(name.lstat().st_mode)


@pytest.mark.parametrize("name", ["x" * 255, "x" * 220, "\N{SNOWMAN}" * 85, "\N{DRAGON}" * 63])
def test_a_name_may_be_as_long_as_the_system_allows(name, tmp_path):
    for content in (OLD, NEW):
        write_atomically(tmp_path / name, content)
        assert (tmp_path / name).read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a\0b", "\0", "\ud800"])
def test_a_name_that_no_file_can_have_is_named(name, tmp_path):
    with pytest.raises(OSError, match="could not write") as caught:
        write_atomically(tmp_path / name, NEW)
    assert caught.value.errno == errno.EINVAL
    assert "\0" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- bytes, open files


class Slow(io.RawIOBase):
    """Takes and gives three bytes at a time, as a file without a buffer may."""

    def __init__(self, content=b""):
        self.content = bytearray(content)

    def writable(self):
        return True

    def readable(self):
        return True

    def write(self, data):
        self.content += bytes(data[:3])
        return min(3, len(data))

    def readinto(self, buffer):
        size = min(3, len(buffer))
        taken, self.content = self.content[:size], self.content[size:]
        buffer[: len(taken)] = taken
        return len(taken)


def small_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    network = TaskNetwork(model)
    network.open(0, [0, 1])
    network.commit()
    return network


def build_model():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def assert_same_network(network, loaded):
    x = torch.randn(3, 4)
    assert torch.equal(network.eval()(x, 0), loaded(x, 0))


@pytest.mark.parametrize("kind", [str, os.fsencode, os.path.abspath, lambda path: path])
def test_archives_take_paths_of_every_kind(kind, tmp_path):
    network, path = small_network(), kind(tmp_path / "a rchive\N{SNOWMAN}")
    assert save_archive(network, path) == os.stat(path).st_size
    assert_same_network(network, load_archive(path, build_model))


@pytest.mark.parametrize("make", [io.BytesIO, Slow, tempfile.TemporaryFile])
def test_archives_take_open_files_and_leave_them_open(make, tmp_path):
    network, expected = small_network(), tmp_path / "file"
    save_archive(network, expected)
    with make() as file:
        assert save_archive(network, file) == expected.stat().st_size
        if not isinstance(file, Slow):
            file.seek(0)
        assert_same_network(network, load_archive(file, build_model))
        assert not file.closed


def test_an_open_file_is_written_and_read_from_where_it_is(tmp_path):
    network = small_network()
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"before")
        save_archive(network, file)
        file.seek(0)
        assert file.read(6) == b"before"
        assert_same_network(network, load_archive(file, build_model))


def test_an_archive_is_read_from_a_pipe(tmp_path):
    network, content = small_network(), io.BytesIO()
    save_archive(network, content)
    reading, writing = os.pipe()
    with open(reading, "rb") as source, open(writing, "wb") as target:
        target.write(content.getvalue())
        target.close()
        assert_same_network(network, load_archive(source, build_model))


def test_an_open_file_that_never_ends_is_refused_at_once():
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size=-1):
            assert 0 < size <= 1 << 20
            self.given += size
            return b"\0" * size

    file = Endless()
    with pytest.raises(ArchiveError, match="Endless"):
        load_archive(file, build_model)
    assert file.given < 100
    header = b'{"tasks":{"dtype":"U8","shape":[9],"data_offsets":[0,%d]}}' % 10**15
    with pytest.raises(ArchiveError, match="BytesIO"):
        load_archive(io.BytesIO(struct.pack("<Q", len(header)) + header), build_model)


def test_an_open_file_of_text_is_refused_by_name(tmp_path):
    network = small_network()
    with pytest.raises(ArchiveError, match=r"StringIO takes text.*'wb'"):
        save_archive(network, io.StringIO())
    with pytest.raises(ArchiveError, match=r"StringIO.*'rb'"):
        load_archive(io.StringIO("text"), build_model)


def test_a_name_that_no_archive_can_have_is_refused_by_name(tmp_path):
    with pytest.raises(OSError, match="could not write"):
        save_archive(small_network(), tmp_path / "a\0b")
    with pytest.raises(ArchiveError, match="NUL"):
        load_archive(tmp_path / "a\0b", build_model)
