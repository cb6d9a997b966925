"""Which kinds of store there are, by the name that an archive has for them."""

from __future__ import annotations

from typing import TypeVar

from avalanche_compress.core.store import WeightStore
from avalanche_compress.errors import TaskStateError, nearest

S = TypeVar("S", bound="type[WeightStore]")

_STORES: dict[str, type[WeightStore]] = {}


def register_store(store: S) -> S:
    """Let archives and networks know a kind of store by its name; a class decorator.

    :param store: with a ``kind`` of its own.
    :raises TaskStateError: if another class has that name.
    """
    known = _STORES.setdefault(store.kind, store)
    if known is not store and known.__qualname__ != store.__qualname__:
        raise TaskStateError(
            f"the kind of store {store.kind!r} is {known.__module__}.{known.__qualname__} already: "
            f"give {store.__qualname__} a kind of its own."
        )
    _STORES[store.kind] = store
    return store


def store_of_kind(kind: str) -> type[WeightStore]:
    """The class of a kind of store.

    :param kind: as archives name it.
    :raises TaskStateError: if there is none.
    """
    if kind not in _STORES:
        raise TaskStateError(
            f"there is no kind of store {kind!r}{nearest(kind, _STORES)}: known are "
            f"{sorted(_STORES)}."
        )
    return _STORES[kind]
