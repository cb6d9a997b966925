"""The command ``python -m benchmarks.report``: :mod:`benchmarks.report.command`."""

from benchmarks.report.command import main

if __name__ == "__main__":
    raise SystemExit(main())
