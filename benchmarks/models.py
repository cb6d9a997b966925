"""The command ``python -m benchmarks.models``: :mod:`benchmarks.stress.models`."""

from benchmarks.stress.models import main

if __name__ == "__main__":
    raise SystemExit(main())
