"""The one error that every decoder of this package raises on bytes it cannot have written."""

from __future__ import annotations

from avalanche_compress.errors import CompressError


class CorruptStreamError(CompressError, ValueError):
    """Compressed data is truncated, has bytes left over, or contradicts itself.

    Example::

        >>> from avalanche_compress.codec import CorruptStreamError
        >>> from avalanche_compress.errors import CompressError
        >>> issubclass(CorruptStreamError, (CompressError, ValueError))
        True
    """
