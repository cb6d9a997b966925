"""The command ``avalanche-compress``: looks into archives, checks, compares and exports them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import nn

from avalanche_compress.archive import load_archive
from avalanche_compress.errors import CompressError
from avalanche_compress.export import export_task
from avalanche_compress.inspection import (
    ArchiveContents,
    BuildModel,
    LayerContents,
    diff_archives,
    inspect_archive,
    verify_archive,
)

FINE, NOT_FINE, FAILED = range(3)
"""Exit codes: the answer is yes, it is no (damaged, different), there is no answer."""
_STOPPED = 130
_WIDEST = 80
"""Characters of a cell of a table; a name in a file may have millions."""
_LONGEST = 500
"""Characters of a message."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    :param arguments: of the command line.
    :return: 0 if all is well; 1 if ``verify`` finds damage or ``diff`` a difference; 2 if the
        command cannot answer, with one line of why on standard error; 130 if it was stopped.
    """
    given = _parser().parse_args(arguments)
    try:
        code = int(given.run(given))
        sys.stdout.flush()
        return code
    except _UsageError as error:
        return _say(str(error))
    except BrokenPipeError:  # nobody reads on, and nothing is to be said at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CompressError, OSError) as error:
        return _say(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        _say("stopped")
        return _STOPPED


class _UsageError(Exception):
    """What was given cannot be used."""


def _say(message: str) -> int:
    text = _shown(" ".join(message.split()))
    print(f"avalanche-compress: {text[:_LONGEST]}", file=sys.stderr)
    return FAILED


def _shown(text: str) -> str:
    r"""Text that may be a stranger's, as a terminal may have it: what commands it is escaped.

    >>> _shown("a\x1b[31mb\n")
    'a\\x1b[31mb\\n'
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return plain.encode(encoding, "backslashreplace").decode(encoding)


def _print(*lines: str) -> None:
    for line in lines:
        print(_shown(line))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: {message} (--help says more)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="avalanche-compress", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    inspect = _command(commands, "inspect", _inspect, "tasks, classes, bytes, density, bits, ranks")
    inspect.add_argument("file")
    verify = _command(commands, "verify", _verify, "read everything with all checks")
    verify.add_argument("file")
    diff = _command(commands, "diff", _diff, "in what two archives differ")
    diff.add_argument("old")
    diff.add_argument("new")
    export = _command(commands, "export", _export, "one task as a file of ONNX, or of torch.export")
    export.add_argument("file")
    export.add_argument("--task", type=int, required=True, metavar="LABEL")
    out = export.add_mutually_exclusive_group(required=True)
    for suffix, what in (("onnx", "an ONNX model"), ("pt2", "a program of torch.export")):
        out.add_argument(f"--{suffix}", metavar=f"OUT.{suffix}", help=what)
    _add_model(export, required=True)
    sample = export.add_mutually_exclusive_group(required=True)
    sample.add_argument(
        "--shape", metavar="C,H,W", type=_shape, help="of one sample of float32 numbers"
    )
    sample.add_argument(
        "--example", metavar="MODULE:FUNCTION", help="a function of yours that gives a mini-batch"
    )
    for command in (inspect, verify, diff):
        command.add_argument("--json", action="store_true", help="for programs to read")
    for command in (inspect, verify):
        _add_model(command, required=False)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], title: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=title, description=title)
    command.set_defaults(run=run)
    return command


def _add_model(command: argparse.ArgumentParser, required: bool) -> None:
    command.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        required=required,
        help="a function of yours that builds the model; the module is imported, which runs it",
    )


def _shape(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: sizes of 1 or more were expected, as 3,32,32")
    return sizes


def _build_model(name: str | None) -> BuildModel | None:
    """The function that ``--model`` names.

    :raises _UsageError: if there is none; it raises it if it fails, or makes no model.
    """
    return None if name is None else partial(_called, "--model", name, nn.Module)


def _function(option: str, name: str) -> Callable[[], Any]:
    """What an option names as ``MODULE:FUNCTION``; the module is imported from here, too.

    :raises _UsageError: if there is none.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise _UsageError(f"{option} {name}: MODULE:FUNCTION was expected, such as my_models:build")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(import_module(module), attribute)
    except Exception as error:
        raise _failed(option, name, error) from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(function):
        raise _UsageError(f"{option} {name}: it is a {type(function).__name__} and no function")
    found: Callable[[], Any] = function
    return found


def _called(option: str, name: str, kind: type | None = None) -> Any:
    """What the function gives that an option names.

    :param kind: that it has to be of.
    :raises _UsageError: if there is no such function, it fails, or gives something else.
    """
    function = _function(option, name)
    try:
        made = function()
    except Exception as error:
        raise _failed(option, name, error) from error
    if kind is not None and not isinstance(made, kind):
        raise _UsageError(f"{option} {name}: it gives a {type(made).__name__}, no {kind.__name__}")
    return made


def _failed(option: str, name: str, error: Exception) -> _UsageError:
    return _UsageError(f"{option} {name}: {type(error).__name__}: {error}")


# ---------------------------------------------------------------------------- commands


def _inspect(given: argparse.Namespace) -> int:
    contents = inspect_archive(given.file, _build_model(given.model))
    if given.json:
        print(json.dumps(asdict(contents), indent=2))
    else:
        _print(*_described(contents))
    return FINE


def _export(given: argparse.Namespace) -> int:
    out, suffix = (given.onnx, "onnx") if given.pt2 is None else (given.pt2, "pt2")
    if not out.endswith(f".{suffix}"):
        raise _UsageError(f"--{suffix} {out}: a name that ends in .{suffix} was expected")
    build = _build_model(given.model)
    assert build is not None, "the parser asks for one"
    if given.shape is None:
        example = _called("--example", given.example)
    else:
        try:
            example = torch.randn(2, *given.shape)
        except (RuntimeError, TypeError) as error:  # more than there is memory for, or numbers
            sizes = ",".join(map(str, given.shape))
            raise _UsageError(f"--shape {sizes}: {str(error).splitlines()[0]}") from error
    size = export_task(load_archive(given.file, build), given.task, out, example)
    _print(f"{out}: {size:,} bytes")
    return FINE


def _verify(given: argparse.Namespace) -> int:
    build = _build_model(given.model)
    try:
        unchecked = verify_archive(given.file, build)
    except CompressError as error:
        if given.json:
            print(json.dumps({"intact": False, "reason": str(error)}, indent=2))
        else:
            _print(f"{given.file}: {' '.join(str(error).split())}")
        return NOT_FINE
    if given.json:
        print(json.dumps({"intact": True, "unchecked": unchecked}, indent=2))
    else:
        _print(f"{given.file}: intact", *(f"not checked: {what}" for what in unchecked))
    return FINE


def _diff(given: argparse.Namespace) -> int:
    differences = diff_archives(given.old, given.new)
    if given.json:
        print(json.dumps([asdict(difference) for difference in differences], indent=2))
    else:
        _print(*(f"{d.where}: {d.what}" for d in differences))
    return NOT_FINE if differences else FINE


# ---------------------------------------------------------------------------- as text


def _described(contents: ArchiveContents) -> list[str]:
    inside = sum(task.total_bytes for task in contents.tasks)
    shared = contents.static_bytes + sum(layer.shared_bytes for layer in contents.layers)
    lines = [
        f"{contents.file}: {contents.total_bytes:,} bytes, format {contents.format}, "
        f"{len(contents.tasks)} tasks ({inside:,} bytes), shared by all {shared:,} bytes",
        "",
        *_table(
            ["task", "classes", "bytes", "private", "statistics", "layers"],
            [
                [
                    str(task.label),
                    _numbers(task.classes),
                    f"{task.total_bytes:,}",
                    f"{task.private_bytes:,}",
                    f"{task.statistics_bytes:,}",
                    f"{task.total_bytes - task.private_bytes - task.statistics_bytes:,}",
                ]
                for task in contents.tasks
            ],
        ),
        "",
        *_table(
            ["layer", "kind", "shape", "bytes", "shared", "density %", "bits", "rank"],
            [_layer_row(layer) for layer in contents.layers],
        ),
    ]
    lines += [f"not read: {x.unread}" for x in contents.layers if x.unread is not None]
    lines += ["", "density, bits and rank are those of the first and the last task"]
    return lines


def _layer_row(layer: LayerContents) -> list[str]:
    return [
        layer.name,
        layer.kind,
        "x".join(map(str, layer.shape)),
        f"{sum(layer.section_bytes):,}",
        f"{layer.shared_bytes:,}",
        _ends([None if d is None else 100 * d for d in layer.density]),
        _ends(layer.bits),
        _ends(layer.ranks),
    ]


def _ends(values: Sequence[float | None]) -> str:
    """A row of numbers by its first and its last one."""
    if all(value is None for value in values):
        return "-"
    ends = ["-" if value is None else f"{value:.3g}" for value in (values[0], values[-1])]
    return ends[0] if len(values) == 1 or ends[0] == ends[1] else " .. ".join(ends)


def _numbers(numbers: Sequence[int]) -> str:
    """Class numbers, runs of them by their ends, many of them cut.

    >>> _numbers([0, 1, 2, 7, 9, 10])
    '0-2 7 9-10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return " ".join(texts[:8]) + (f" ... ({len(numbers)})" if len(texts) > 8 else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text, the first to the left and the others to the right."""
    rows = [[_cut(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (head, *rows)
    ]


def _cut(cell: str) -> str:
    cell = _shown(cell[: _WIDEST + 1])
    return cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 3]}..."
