"""The command ``python -m benchmarks.fuzz``: :mod:`benchmarks.stress.fuzz`."""

from benchmarks.stress.fuzz import main

if __name__ == "__main__":
    raise SystemExit(main())
