"""Imports run one way, files stay short, and the public names are what the package says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import avalanche_compress

PACKAGE = Path(avalanche_compress.__file__).parent
GROUND = ("errors", "files")
ROOMS = [
    "codec",
    "core",
    "host",
    "container",
    "sections",
    "archive",
    "export",
    "metrics",
    "inference",
    "shaping",
    "training",
    "methods",
    "inspection",
    "command",
    "__main__",
]
"""Each room may know those before it, and itself."""
KNOW_AVALANCHE = {"core/network.py", "core/heads.py"}
"""Files below host/ that may: Avalanche's base class of models, and its classifiers."""
LONGEST_FILE = 450

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
EVERY_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: name_of(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = ("avalanche_compress", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, also in functions and for types only."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@EVERY_FILE
def test_imports_run_one_way(path):
    room = room_of(path)
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("avalanche_compress.")}
    rooms = {name for name in ours if name in ROOMS or name in GROUND}
    allowed = {*GROUND, *ROOMS[: ROOMS.index(room) + 1]} if room in ROOMS else {room}
    assert rooms <= allowed, f"{room} must not know {rooms - allowed}"
    front = {"avalanche_compress.__version__"} if room == "container" else set()
    assert {"avalanche_compress." + name for name in ours - rooms} <= front, (
        "import from the module, not from the front"
    )


@EVERY_FILE
def test_codec_and_core_do_not_know_avalanche(path):
    if room_of(path) in {"codec", "core"} and name_of(path) not in KNOW_AVALANCHE:
        assert not any(name.split(".")[0] == "avalanche" for name in imported(path))


def test_a_method_knows_no_other_method_but_sub_networks():
    for path in (PACKAGE / "methods").rglob("*/*.py"):
        folder = path.parent.name
        others = {name.split(".")[2] for name in imported(path) if ".methods." in name}
        assert others <= {folder, "subnetworks"}, path


def test_there_is_no_circle_of_imports():
    modules = {module_of(path): path for path in FILES}
    graph = {
        module: {name for name in imported(path) if name in modules}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for following in graph[module]:
                visit(following, [*way, module])
            done.add(module)

    for module in graph:
        visit(module, [])


@EVERY_FILE
def test_no_file_is_long(path):
    lines = path.read_text().count("\n")
    assert lines <= LONGEST_FILE, f"{name_of(path)} has {lines} lines: make it two files"


def test_benchmarks_use_public_names_only():
    public = tuple(
        f"avalanche_compress.{room}" for room in ("archive", "codec", "errors", "files", "methods")
    )
    for path in (PACKAGE.parent / "benchmarks").rglob("*.py"):
        for name in imported(path):
            parent, _, leaf = name.rpartition(".")
            named = parent == "avalanche_compress" and leaf in avalanche_compress.__all__
            if name.startswith("avalanche_compress.") and not named:
                assert name.startswith(public) or leaf == "__version__", f"{path}: {name}"


def test_every_public_name_exists_and_has_a_docstring():
    for name in avalanche_compress.__all__:
        assert getattr(avalanche_compress, name).__doc__, name
