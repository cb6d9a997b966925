"""What a user gets by installing and importing the package."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import yaml

import avalanche_compress

ROOT = Path(__file__).parent.parent


def test_the_version_that_is_cited_and_described_is_the_packages():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == avalanche_compress.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d.*?)\] - (\S+)$", changes, re.MULTILINE)
    assert newest.groups() == (citation["version"], str(citation["date-released"]))


def test_the_versions_of_python_that_are_claimed_are_those_that_run_the_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    claimed = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert claimed
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        (job,) = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values()
        steps = [step.get("with", {}) for step in job["steps"]]
        assert [step["python-version"] for step in steps if "python-version" in step] == claimed


def test_workflows_run_scripts_that_there_are():
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        (job,) = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values()
        (command,) = (step["run"] for step in job["steps"] if "run" in step)
        (values,) = job["strategy"]["matrix"].values()
        for value in values:
            words = re.sub(r"\$\{\{.*?\}\}", value, command).split()
            assert words[0] == "bash"
            assert (ROOT / words[1]).is_file()


def test_the_bounds_of_the_dependencies_are_the_versions_that_were_run():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(
        re.match(r"([\w-]+)>=([\d.]+)", entry).groups() for entry in project["dependencies"]
    )
    script = (ROOT / ".ci" / "oldest").read_text(encoding="utf-8")
    installed = dict(re.findall(r"([\w-]+)==([\d.]+)", script))
    assert bounds == {name: installed[name] for name in bounds}
    python = re.search(r"^python=python(3\.\d+)$", script, re.MULTILINE).group(1)
    assert project["requires-python"] == f">={python}"


def test_importing_the_package_asks_for_neither_scipy_nor_wandb():
    """Avalanche 0.6 imports both itself, so it is who asks for them that counts."""
    script = """
        import builtins

        import_module, asked = builtins.__import__, set()

        def import_and_record(name, globals=None, *arguments, **kwargs):
            asker = (globals or {}).get("__name__", "")
            if asker.partition(".")[0] == "avalanche_compress":
                asked.add(name.partition(".")[0])
            return import_module(name, globals, *arguments, **kwargs)

        builtins.__import__ = import_and_record
        import avalanche_compress
        assert {"torch", "avalanche", "avalanche_compress"} <= asked, asked
        assert not {"scipy", "wandb"} & asked
        assert avalanche_compress.WandBLogger.__module__.startswith("avalanche_compress.")
        assert "wandb" in asked
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_names_are_completed_and_unknown_ones_are_errors():
    assert set(avalanche_compress.__all__) <= set(dir(avalanche_compress))
    assert not hasattr(avalanche_compress, "Wandblogger")
