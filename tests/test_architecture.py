"""Imports run one way, and the public names are what the package says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import avalanche_compress

PACKAGE = Path(avalanche_compress.__file__).parent
GROUND = {"errors", "files"}
LEVELS = [
    "codec",
    "core",
    "host",
    "container",
    "archive",
    "metrics",
    "inference",
    "shaping",
    "training",
    "methods",
]


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module)
    return names


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].replace(".py", "")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if part_of(path) != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    own = {name.split(".")[1] for name in imported(path) if name.startswith("avalanche_compress.")}
    assert "avalanche_compress" not in imported(path), "import from the module, not from the front"
    below = LEVELS[: LEVELS.index(part) + 1] if part in LEVELS else []
    allowed = {part, *(GROUND - {part} if part in LEVELS else ()), *below}
    assert own <= allowed, f"{part} must not know {own - allowed}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_codec_and_core_do_not_know_avalanche(path):
    if part_of(path) in {"codec", "core"} and path.name not in {"network.py", "heads.py"}:
        assert not any(name.split(".")[0] == "avalanche" for name in imported(path))


def test_benchmarks_use_public_names_only():
    public = {"avalanche_compress", *(f"avalanche_compress.{p}" for p in ("codec", "files"))}
    for path in (PACKAGE.parent / "benchmarks").rglob("*.py"):
        ours = {name for name in imported(path) if name.split(".")[0] == "avalanche_compress"}
        ours = {name for name in ours if not name.startswith("avalanche_compress.methods.")}
        assert ours <= public, path


def test_every_public_name_exists_and_has_a_docstring():
    for name in avalanche_compress.__all__:
        assert getattr(avalanche_compress, name).__doc__, name
