"""The command ``python -m benchmarks.interoperation``: :mod:`benchmarks.stress.interoperation`."""

from benchmarks.stress.interoperation import main

if __name__ == "__main__":
    raise SystemExit(main())
