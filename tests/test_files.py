"""A file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import textwrap
import time

import pytest
from disk_for_tests import largest_file

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
    assert caught.value.errno == code and str(path) in str(caught.value)
    assert_untouched(path)


@pytest.mark.parametrize(
    "code, raised", [(errno.EIO, True), (errno.EINVAL, False), (errno.EACCES, False)]
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
    assert caught.value.errno == errno.EFBIG and str(path) in str(caught.value)
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
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
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
