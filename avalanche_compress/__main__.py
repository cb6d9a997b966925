"""``python -m avalanche_compress``: the command ``avalanche-compress``."""

from avalanche_compress.command import main

if __name__ == "__main__":
    raise SystemExit(main())
