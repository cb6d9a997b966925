"""The command ``python -m benchmarks.speed``: :mod:`benchmarks.speed.steps`."""

from benchmarks.speed.steps import main

if __name__ == "__main__":
    raise SystemExit(main())
