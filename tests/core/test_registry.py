"""Methods and stores are registered once, by name, by a call or by an installed package."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from streams_for_tests import mlp

from avalanche_compress import (
    WSN,
    ArchiveError,
    CompressedStrategy,
    MaskedStore,
    MaskingPlugin,
    Method,
    PackNet,
    QuantizationPlugin,
    TaskNetwork,
    TaskStateError,
    load_archive,
    method_named,
    register_method,
    register_store,
    registered_methods,
    save_archive,
    store_kinds,
    unregister_method,
)
from avalanche_compress.core import registry


class OptionStore(MaskedStore):
    """A store of somebody else's, with an option."""

    kind = "option"

    def __init__(self, place, name="weight", *, option=3):
        super().__init__(place, name)
        self.option = option

    def config(self):
        return {"option": self.option}


class Optioned(CompressedStrategy):
    """Its strategy."""

    def __init__(self, *, option=3, **arguments):
        store = partial(OptionStore, option=option)
        super().__init__(store=store, shaping=[MaskingPlugin(0.5)], **arguments)


METHOD = Method("optioned", Optioned, OptionStore, small={"option": 4})


@contextmanager
def registered(method):
    register_method(method)
    try:
        yield method
    finally:
        unregister_method(method.name)


def trained(option):
    network = TaskNetwork(mlp(), partial(OptionStore, option=option))
    network.open(0, [0, 1])
    network.commit()
    return network.eval()


# ------------------------------------------------------------------ methods


def test_a_method_is_found_by_its_name_until_it_is_unregistered():
    with registered(METHOD):
        assert method_named("optioned") is METHOD
        assert METHOD in registered_methods()
        assert "option" in store_kinds()
    assert METHOD not in registered_methods()
    assert "option" not in store_kinds()
    with pytest.raises(TaskStateError, match=r"no method 'optioned'.*known are"):
        method_named("optioned")
    with pytest.raises(TaskStateError, match="no method 'optioned'"):
        unregister_method("optioned")


def test_an_unknown_name_says_what_is_nearest():
    with pytest.raises(TaskStateError, match="packnet"):
        method_named("paknet")


def test_a_kind_stays_as_long_as_another_method_has_it():
    with registered(Method("masked_too", WSN, partial(MaskedStore, scored=True))):
        pass
    assert "masked" in store_kinds()


@pytest.mark.parametrize("name", ["", "Two", "a-b", "../x", "1st"])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(TaskStateError, match="cannot be called"):
        register_method(Method(name, WSN, MaskedStore))


def test_a_name_or_a_kind_that_is_taken_is_refused_and_nothing_is_registered():
    before = registered_methods()
    with pytest.raises(TaskStateError, match=r"'wsn' is .*\.WSN already"):
        register_method(Method("wsn", PackNet, MaskedStore))

    class Masked(OptionStore):
        kind = "masked"

    with pytest.raises(TaskStateError, match=r"'masked' is .*\.MaskedStore already"):
        register_method(Method("other", PackNet, Masked))
    with pytest.raises(TaskStateError, match=r"'masked' is .*\.MaskedStore already"):
        register_store(Masked)
    assert registered_methods() == before


def test_settings_are_the_small_ones_then_the_variants_then_the_callers():
    class Taken:
        def __init__(self, **arguments):
            self.arguments = arguments

    method = Method(
        "taken", Taken, MaskedStore,
        small={"a": 1, "b": 1, "c": 1},
        variants={"other": {"b": 2, "c": 2, "plugins": [partial(QuantizationPlugin, 4)]}},
    )  # fmt: skip
    first, second = (method.build(method.variants["other"], c=3, plugins=["x"]) for _ in range(2))
    plugin, theirs = first.arguments.pop("plugins")
    assert first.arguments == {"a": 1, "b": 2, "c": 3}
    assert theirs == "x"
    assert isinstance(plugin, QuantizationPlugin)
    assert plugin is not second.arguments["plugins"][0]
    assert method.build().arguments == {"a": 1, "b": 1, "c": 1, "plugins": []}


@pytest.mark.parametrize("method", registered_methods(), ids=lambda method: method.name)
def test_the_store_of_a_method_is_the_one_that_its_strategy_builds(method):
    for settings in (method.long, *method.variants.values()):
        model = mlp()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        strategy = method.build(settings, model=model, optimizer=sgd, evaluator=None)
        for store in strategy.network.weight_stores:
            assert type(store) is method.store_class


# ------------------------------------------------------------------ archives


@pytest.mark.parametrize("option", ["text", True, False, 4, -(2**63), 0.5, 1e300, None])
def test_an_option_comes_back_as_it_was(option, tmp_path):
    network, x = trained(option), torch.randn(3, 1, 8, 8)
    with registered(METHOD):
        save_archive(network, tmp_path / "archive")
        loaded = load_archive(tmp_path / "archive", mlp)
    for store in loaded.weight_stores:
        assert type(store) is OptionStore
        assert store.option == option
        assert type(store.option) is type(option)
    assert torch.equal(loaded(x, 0), network(x, 0))


@pytest.mark.parametrize("option", [math.nan, math.inf, 2**63, [1], {"a": 1}, (1,), object()])
def test_an_option_that_would_not_come_back_is_refused_before_the_file_is_touched(option, tmp_path):
    (tmp_path / "archive").write_bytes(b"before")
    with registered(METHOD), pytest.raises(ArchiveError, match=r"'option'.* does not fit"):
        save_archive(trained(option), tmp_path / "archive")
    assert (tmp_path / "archive").read_bytes() == b"before"


def test_a_store_that_could_not_be_built_again_is_refused_before_the_file_is_touched(tmp_path):
    with pytest.raises(ArchiveError, match=r"OptionStore, kind 'option'.*register_store"):
        save_archive(trained(3), tmp_path / "archive")

    class Known(OptionStore):
        kind = "masked"  # which takes no such option

    network = trained(3)
    for store in network.weight_stores:
        store.__class__ = Known
    with pytest.raises(ArchiveError, match="unexpected keyword argument 'option'"):
        save_archive(network, tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


def test_a_file_of_a_method_that_is_not_installed_says_so(tmp_path):
    with registered(METHOD):
        save_archive(trained(3), tmp_path / "archive")
    with pytest.raises(ArchiveError, match=r"not installed.*no kind of store 'option'"):
        load_archive(tmp_path / "archive", mlp)


def test_a_store_alone_can_be_registered(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_STORES", {})
    register_store(OptionStore)
    save_archive(trained(3), tmp_path / "archive")
    assert load_archive(tmp_path / "archive", mlp).tasks == [0]


# ------------------------------------------------------------------ installed packages


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a module of some text, which registers itself or does not."""

    def install(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(registry, "_installed_are_loaded", False)

    return install


REGISTERS = """
from avalanche_compress import MaskedStore, Method, WSN, register_method
class Store(MaskedStore):
    kind = "installed"
method = register_method(Method("installed_method", WSN, Store))
"""


@pytest.mark.parametrize(
    "ask",
    [
        lambda: method_named("installed_method"),
        lambda: registry.store_of_kind("installed"),
        lambda: next(m for m in registered_methods() if m.name == "installed_method"),
    ],
)
def test_an_installed_method_is_loaded_when_it_is_asked_for(ask, installed, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.delitem(sys.modules, "installed_module", raising=False)
    installed("installed_module", REGISTERS)
    method_named("wsn")
    assert "installed_method" not in registry._METHODS  # nobody has asked for it
    assert ask() is not None


def test_an_installed_package_that_fails_is_named_and_does_no_harm(installed):
    installed("broken_method", "raise ImportError('no such thing')")
    with pytest.warns(UserWarning, match="'broken_method'.*ImportError: no such thing"):
        assert "wsn" in [method.name for method in registered_methods()]
