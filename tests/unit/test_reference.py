"""The reference in docs/ is what the code says."""

import importlib.util
from pathlib import Path

import pytest


def pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("reference", "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.pages()
    return found


@pytest.mark.parametrize(
    "name",
    ["commands.md", "topology.md", "profiles.md", "failures.md", "result.md", "log-result.md"],
)
def test_the_page_is_up_to_date(name: str) -> None:
    written = Path("docs/reference", name).read_text(encoding="utf-8")
    assert written == pages()[name], "run .venv/bin/python scripts/reference.py"
