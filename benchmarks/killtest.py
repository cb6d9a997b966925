"""The command ``python -m benchmarks.killtest``: :mod:`benchmarks.stress.killtest`."""

from benchmarks.stress.killtest import main

if __name__ == "__main__":
    raise SystemExit(main())
