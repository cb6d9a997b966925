"""Train strategies on streams of tasks and compare accuracy, forgetting, bytes and seconds.

Run ``python -m benchmarks.compare --help`` for the options. What does the work is imported behind
the parser, because torch and Avalanche take seconds and help should not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmarks.choices import (
    DEVICES,
    ENGINES,
    FIRST_STREAMS,
    NAMES,
    RULES,
    SAVE_EVERY,
    SCENARIOS,
    TRACKING,
)
from benchmarks.runs.importing import importing
from benchmarks.runs.stopping import exit_code, stopping

if TYPE_CHECKING:
    from benchmarks.runs.comparison import Options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison.

    :param arguments: command line without the program's name; that of the process by default.
    :return: exit code, 0 only when every run finished.
    """
    try:
        with stopping() as check_stop, importing():  # which takes seconds
            options = parse(arguments)
            from benchmarks.runs.comparison import compare

            check_stop()
    except KeyboardInterrupt as signal_received:
        print("stopped: no run has begun; give the same command again.", file=sys.stderr)
        return exit_code(signal_received)
    return compare(options)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; an unknown name ends the program with exit code 2.

    :param arguments: command line without the program's name; that of the process by default.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    from benchmarks.runs.comparison import checked, names

    if given.list:
        print(names())
        parser.exit()
    return checked(given, parser)


def _parser() -> _Parser:
    parser = _Parser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--strategies",
        nargs="+",
        metavar="NAME",
        help="or all (default: every method, some baselines and references)",
    )
    parser.add_argument(
        "--streams",
        nargs="+",
        metavar="NAME",
        help=f"default: {' '.join(FIRST_STREAMS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--backbone", metavar="NAME", help="default: each stream's own")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="N", help="epochs per task")
    length.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the epochs, at least 2; tables, files and records say so",
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="data sets (default: data)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="default: results"
    )
    parser.add_argument("--wandb", choices=TRACKING, default="off")
    parser.add_argument(
        "--wandb-names",
        choices=NAMES,
        default=NAMES[0],
        help="avalanche: its names of single experiences as well",
    )
    parser.add_argument(
        "--scenario",
        dest="scenarios",
        nargs="+",
        choices=SCENARIOS,
        default=["task"],
        help="with task labels at test, or without and all classes in one head",
    )
    parser.add_argument(
        "--inference",
        nargs="+",
        default=list(RULES),
        metavar="RULE",
        help=f"class scenario: how our strategies infer tasks (default: {' '.join(RULES)})",
    )
    parser.add_argument(
        "--orders",
        type=int,
        default=1,
        metavar="N",
        help="orders of the tasks, the canonical one first (default: 1)",
    )
    parser.add_argument("--engine", choices=ENGINES, default="local")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="runs at a time, one a core at most (default: as many as memory has room for)",
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster, or auto")
    parser.add_argument(
        "--device", choices=DEVICES, default="cpu", help="auto: cuda where there is one"
    )
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="train in bfloat16; tables, files and records say so",
    )
    parser.add_argument(
        "--save-every",
        type=float,
        default=SAVE_EVERY,
        metavar="SECONDS",
        help=f"how much of a task a killed run of ours may lose, about (default: {SAVE_EVERY:.0f})",
    )
    parser.add_argument(
        "--list", action="store_true", help="print the names of strategies, streams and backbones"
    )
    return parser


class _Parser(argparse.ArgumentParser):
    """Prints one line for an error, not the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
