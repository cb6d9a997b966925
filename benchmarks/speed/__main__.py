"""The command ``python -m benchmarks.speed``: :mod:`benchmarks.speed.command`."""

from benchmarks.speed.command import main

if __name__ == "__main__":
    raise SystemExit(main())
