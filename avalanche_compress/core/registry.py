"""Which methods and kinds of store there are: ours, and those of other packages.

A package of its own adds a method by calling :func:`register_method` when it is imported, and is
imported when it is needed if its ``pyproject.toml`` names the module as an entry point::

    [project.entry-points."avalanche_compress.methods"]
    my_method = "my_package.my_method"
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import Any, TypeVar

from avalanche_compress.core.store import WeightStore
from avalanche_compress.errors import TaskStateError, nearest

S = TypeVar("S", bound="type[WeightStore]")
Settings = Mapping[str, Any]

ENTRY_POINTS = "avalanche_compress.methods"
"""The group of entry points that other packages register methods and stores by."""


@dataclass(frozen=True)
class Method:
    """A method as the comparison, the archives and all tests of every method need it.

    Settings are arguments of the strategy; ``plugins`` among them lists functions that each make a
    plugin.

    :param name: in commands, and of its recipe: lower-case letters, digits and underscores.
    :param strategy: its class.
    :param store: what it puts behind each weight, a class or a partial of one.
    :param small: settings for a training of a few steps.
    :param long: what differs from ``small`` in a stream of hundreds of tasks.
    :param variants: by name, what differs from ``small`` where the method keeps or trains weights
        in another way; their archives are tested as well, those of ``"wide"`` with a wider layer.
    :param recipes: of the comparison, besides the method's own.
    """

    name: str
    strategy: type[Any]
    store: Callable[..., WeightStore]
    small: Settings = field(default_factory=dict)
    long: Settings = field(default_factory=dict)
    variants: Mapping[str, Settings] = field(default_factory=dict)
    recipes: Sequence[str] = ()

    @property
    def store_class(self) -> type[WeightStore]:
        """The class of its store."""
        factory: Any = self.store
        kind: type[WeightStore] = getattr(factory, "func", factory)
        return kind

    @property
    def examples(self) -> dict[str, Settings]:
        """The settings of the method and of its variants, each under a name of its own."""
        variants = {f"{self.name}_{name}": given for name, given in self.variants.items()}
        return {self.name: {}, **variants}

    def build(
        self, settings: Settings | None = None, *, plugins: Iterable[Any] = (), **arguments: Any
    ) -> Any:
        """A strategy with the settings of a small training.

        :param settings: what differs from them: :attr:`long`, or one of :attr:`variants`.
        :param plugins: of the strategy, after those of the settings.
        :param arguments: of the strategy, such as ``model``; they come before all settings.
        """
        given = {**self.small, **(settings or {}), **arguments}
        plugins = [*(make() for make in given.pop("plugins", ())), *plugins]
        return self.strategy(**given, plugins=plugins)


_STORES: dict[str, type[WeightStore]] = {}
_METHODS: dict[str, Method] = {}
_installed_are_loaded = False


def register_method(method: Method) -> Method:
    """Have all that goes through every method know one: archives, the comparison, tests, commands.

    :param method: registered once, when its module is imported.
    :raises TaskStateError: if the name is another method's, or no name; or if the store's kind is
        another store's.

    >>> import torch
    >>> from avalanche_compress import CompressedStrategy, MaskedStore, MaskingPlugin
    >>> class Halves(CompressedStrategy):
    ...     def __init__(self, **kwargs):
    ...         super().__init__(store=MaskedStore, shaping=[MaskingPlugin(0.5)], **kwargs)
    >>> method = register_method(Method("halves", Halves, MaskedStore))
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> method_named("halves").build(model=model, optimizer=sgd, evaluator=None).network.tasks
    []
    >>> unregister_method("halves")
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", method.name):
        raise TaskStateError(
            f"a method cannot be called {method.name!r}: its name is part of commands and file "
            "names, and lower-case letters, digits and underscores were expected."
        )
    known = _METHODS.get(method.name)
    if known is not None and not _same(known.strategy, method.strategy):
        raise TaskStateError(
            f"the method {method.name!r} is {_title(known.strategy)} already: give "
            f"{_title(method.strategy)} another name."
        )
    _check_kind(method.store_class)
    _METHODS[method.name] = method
    return method


def unregister_method(name: str) -> None:
    """Forget a method, and its kind of store if no other method has it.

    :param name: of the method.
    :raises TaskStateError: if there is none.
    """
    del _METHODS[method_named(name).name]


def registered_methods() -> tuple[Method, ...]:
    """All methods in the order of registration: ours, then those of other installed packages.

    >>> [method.name for method in registered_methods()][:3]
    ['packnet', 'wsn', 'tinysubnets']
    """
    _load_installed()
    return tuple(_METHODS.values())


def method_named(name: str) -> Method:
    """A method by its name.

    :param name: as registered.
    :raises TaskStateError: if there is none.

    >>> method_named("wsn").strategy.__name__
    'WSN'
    """
    if name not in _METHODS:
        _load_installed()
    if name not in _METHODS:
        raise TaskStateError(
            f"there is no method {name!r}{nearest(name, _METHODS)}: known are {list(_METHODS)}."
        )
    return _METHODS[name]


def register_store(store: S) -> S:
    """Let archives know a kind of store that belongs to no registered method; a class decorator.

    :param store: with a ``kind`` of its own.
    :raises TaskStateError: if another class has that name.
    """
    _check_kind(store)
    _STORES[store.kind] = store
    return store


def store_of_kind(kind: str) -> type[WeightStore]:
    """The class of a kind of store.

    :param kind: as archives name it.
    :raises TaskStateError: if there is none.

    >>> store_of_kind("masked").__name__
    'MaskedStore'
    """
    if kind not in _kinds():
        _load_installed()
    kinds = _kinds()
    if kind not in kinds:
        raise TaskStateError(
            f"there is no kind of store {kind!r}{nearest(kind, kinds)}: known are {sorted(kinds)}. "
            "Import or install the package that registers it."
        )
    return kinds[kind]


def store_kinds() -> list[str]:
    """The kinds of store that archives may have.

    >>> "masked" in store_kinds()
    True
    """
    _load_installed()
    return sorted(_kinds())


def _kinds() -> dict[str, type[WeightStore]]:
    stores = [*_STORES.values(), *(method.store_class for method in _METHODS.values())]
    return {store.kind: store for store in stores}


def _check_kind(store: type[WeightStore]) -> None:
    known = _kinds().get(store.kind, store)
    if not _same(known, store):
        raise TaskStateError(
            f"the kind of store {store.kind!r} is {_title(known)} already: give {_title(store)} a "
            "kind of its own."
        )


def _same(a: Any, b: Any) -> bool:
    """Whether two classes are one, or one is the other after its module was loaded again."""
    return a is b or _title(a) == _title(b)


def _title(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _load_installed() -> None:
    """Import what other packages register, once."""
    global _installed_are_loaded
    if _installed_are_loaded:
        return
    _installed_are_loaded = True  # first: what is imported may ask for methods itself
    for entry in _entry_points():
        _import(entry)


def _import(entry: metadata.EntryPoint) -> None:
    """Import what an entry point names, or warn that it cannot be."""
    try:
        import_module(entry.value)
    except Exception as error:
        warnings.warn(
            f"the entry point {entry.name!r} of {ENTRY_POINTS} is left out: importing "
            f"{entry.value} fails with {type(error).__name__}: {error}",
            stacklevel=4,
        )


def _entry_points() -> Iterable[metadata.EntryPoint]:
    found: Any = metadata.entry_points()
    if hasattr(found, "select"):
        return found.select(group=ENTRY_POINTS)  # type: ignore[no-any-return]
    return dict.fromkeys(found.get(ENTRY_POINTS, ()))  # Python 3.9 lists some of them twice
