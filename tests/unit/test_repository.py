"""The repository's own files: the lock, the scripts, the settings."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
SCRIPTS = sorted(
    path
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]
    if path.is_file() and path.suffix != ".py"
)


def normal(name: str) -> str:
    """A distribution's name in the one spelling of PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def named() -> set[str]:
    extras = PROJECT["optional-dependencies"]
    found = [*PROJECT["dependencies"], *extras["dev"], *extras["build"]]
    return {normal(re.match(r"[\w.-]+", one)[0]) for one in found}


def pins() -> dict[str, str]:
    """Each requirement of the lock with all its lines."""
    blocks = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.M)
    return {block.split("==")[0]: block for block in blocks if "==" in block}


def test_the_lock_has_what_the_project_names() -> None:
    assert named() - set(pins()) == set()


def test_every_pin_has_an_exact_version_and_hashes() -> None:
    for name, block in pins().items():
        assert re.match(r"[a-z0-9-]+==\d[\w.]*( ;.*)? \\\n", block), name
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), name


def test_the_lock_has_no_addresses_or_paths() -> None:
    assert re.findall(r"://|@ |/work|/home|/root|--(?:index|find|extra|trusted)", LOCK) == []


def test_every_dependency_is_justified() -> None:
    text = (ROOT / "docs/decisions/0002-dependencies.md").read_text()
    assert named() - {normal(name) for name in re.findall(r"\*\*([\w.-]+)\*\*", text)} == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_that_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) is (script.name != "lib.sh")


def test_hooks_run_the_locked_programs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    entries = [hook["entry"] for hook in hooks[0]["hooks"]]
    assert all(entry.startswith(".venv/bin/") for entry in entries)


def test_ci_runs_the_same_scripts() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    runs = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    programs = re.findall(r"(?<![\w/])(?:scripts|\.ci)/[\w-]+", runs)
    assert {".ci/run", "scripts/install", "scripts/demo", "scripts/test"} <= set(programs)
    assert all((ROOT / program).exists() for program in programs)
