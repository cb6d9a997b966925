"""A method of another package is registered once, and all that runs every method runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULE = """
from avalanche_compress import (
    CompressedStrategy, MaskedStore, MaskingPlugin, Method, register_method,
)

class NewcomerStore(MaskedStore):
    kind = "newcomer"

    def __init__(self, place, name="weight", *, tasks=5):
        super().__init__(place, name)
        self.tasks = tasks

    def config(self):
        return {"tasks": self.tasks}

class Newcomer(CompressedStrategy):
    def __init__(self, *, density=0.3, **kwargs):
        super().__init__(store=NewcomerStore, shaping=[MaskingPlugin(density)], **kwargs)

register_method(
    Method(
        "newcomer", Newcomer, NewcomerStore,
        long={"density": 0.02}, variants={"denser": {"density": 0.5}},
    )
)
"""
FILES = {
    "tests/test_misuse.py": 20,
    "tests/test_interoperation.py": 50,
    "tests/training/test_state.py": 10,
    "tests/training/test_hot_paths.py": 3,
    "tests/benchmarks/stress/test_fuzz.py": 2,
    "tests/benchmarks/speed": 1,
    "tests/benchmarks/runs/test_grid.py": 1,
    "tests/benchmarks/runs/test_recipe.py": 1,
    "tests/core/test_registry.py": 1,
}
"""Which tests go through all methods, and how many of them each one has at least: misuse,
interoperation, training states, steps, damaged archives, many tasks, and the kill test of the
comparison."""


def install(folder: Path) -> None:
    (folder / "newcomer_package.py").write_text(MODULE)
    info = folder / "newcomer_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: newcomer_package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[avalanche_compress.methods]\nnewcomer = newcomer_package\n"
    )


def test_a_new_method_is_run_by_everything_that_runs_ours(tmp_path):
    install(tmp_path)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-vv", "--no-header",
        *FILES, "-k", "newcomer",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for file, least in FILES.items():
        passed = re.findall(rf"^{re.escape(file)}.*PASSED", done.stdout, flags=re.MULTILINE)
        assert len(passed) >= least, f"{file} ran {len(passed)} tests of the new method"
