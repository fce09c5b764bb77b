"""The walls of the house (docs/decisions/0001-house.md) stand."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import testbed

PACKAGE = Path(testbed.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From the top down: a part imports only parts of lower floors, never one beside it.
FLOORS = (
    ("__main__", "pytest_plugin"),
    ("cli",),
    ("experiment",),
    ("lab",),
    ("kernel", "predict"),
    ("plan", "migration"),
    ("topology", "report"),
    ("guest", "measure"),
    ("ledger", "profiles"),
    ("units", "errors", "content", "prctl"),
)
LEVEL = {part: len(FLOORS) - floor for floor, parts in enumerate(FLOORS) for part in parts}
HEAVY = ("numpy", "pydantic", "rich", "pyroute2", "scapy", "yaml", "netaddr", "asyncio")
HEAVY += ("cryptography",)


def module_name(file: Path, package: Path = PACKAGE) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, package: Path = PACKAGE) -> set[str]:
    """All that a file imports, wherever in it: in functions and under TYPE_CHECKING too.

    `from testbed.plan import steps` gives both `testbed.plan` and `testbed.plan.steps`, as the
    text alone doesn't tell a module from a name.
    """
    own = module_name(file, package).split(".")
    here = own if file.name == "__init__.py" else own[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return found


def breaches(importer: str, imported: set[str]) -> list[str]:
    """The imports that go up or sideways, given dotted names inside `testbed`."""
    own = importer.split(".")[1] if "." in importer else None
    wrong = []
    for name in sorted(imported):
        part = name.split(".")[1] if name.startswith("testbed.") else None
        if part in LEVEL and part != own and (own is None or LEVEL[part] >= LEVEL[own]):
            wrong.append(f"{importer} imports {name}")
    return wrong


@cache
def graph() -> dict[str, set[str]]:
    """Each module and the modules of testbed that it imports."""
    modules = {module_name(file) for file in FILES}
    return {module_name(file): imports(file) & modules - {module_name(file)} for file in FILES}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, empty if there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for following in sorted(edges.get(node, ())):
            found = walk(following, [*path, node])
            if found:
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := walk(node, []))), [])


def test_every_part_has_a_floor() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or is_package(path)}
    assert parts - {"__init__"} <= set(LEVEL)


def is_package(path: Path) -> bool:
    return path.is_dir() and path.name != "__pycache__" and any(path.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_down(file: Path) -> None:
    # A package's __init__ names its own modules; testbed's own holds the version alone.
    assert breaches(module_name(file), imports(file)) == []


def test_no_circles() -> None:
    # A package's __init__ and its modules may name each other: Python runs the __init__ first.
    inner = {
        name: {one for one in found if not name.startswith(one + ".")}
        for name, found in graph().items()
    }
    assert " -> ".join(circle(inner)) == ""


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_only_kernel_touches_the_kernel_s_network(file: Path) -> None:
    if module_name(file).startswith("testbed.kernel"):
        return
    assert not [name for name in imports(file) if name.split(".")[0] == "pyroute2"]
    names = {
        node.attr
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert "AF_NETLINK" not in names


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_file_is_short_and_silent(file: Path) -> None:
    text = file.read_text()
    lines = text.count("\n")
    assert lines <= 300
    if not module_name(file).startswith("testbed.cli"):
        printed = [
            node.lineno
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]
        assert printed == []


def undocumented(file: Path) -> list[str]:
    """Public modules, classes and functions without a docstring."""
    tree = ast.parse(file.read_text())
    found = [] if ast.get_docstring(tree) or not tree.body else [file.name]

    def visit(node: ast.Module | ast.ClassDef) -> None:
        for child in node.body:
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            names = {
                n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "")
                for n in child.decorator_list
            }
            if child.name.startswith("_") or names & {"overload", "override"}:
                continue
            if not ast.get_docstring(child):
                found.append(f"{file.name}:{child.lineno} {child.name}")
            if isinstance(child, ast.ClassDef):
                visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_what_is_public_is_documented(file: Path) -> None:
    assert undocumented(file) == []


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


IMPORT_ALL = """
import importlib, os, sys, threading
def held():
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink("/proc/self/fd/" + number)
        except OSError:
            pass
    return found
before = held()
for name in sys.argv[1:]:
    importlib.import_module(name)
    opened = {number: what for number, what in held().items() if before.get(number) != what}
    with open("/proc/thread-self/children") as file:
        children = file.read().split()
    assert not opened, (name, opened)
    assert not children, (name, children)
    assert threading.active_count() == 1, (name, threading.enumerate())
"""


def test_importing_does_no_work() -> None:
    modules = [name for name in map(module_name, FILES) if not name.endswith("__main__")]
    assert run_python(IMPORT_ALL, *modules) == ""


def test_the_command_line_starts_light() -> None:
    code = "import testbed.cli.main, sys; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run_python(code).split()}
    assert loaded.isdisjoint(HEAVY)


# ---------------------------------------------------------------- the rules themselves


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("testbed.lab.supervisor", "testbed.kernel.apply", True),
        ("testbed.kernel.apply", "testbed.plan.steps", True),
        ("testbed.kernel.apply", "testbed.kernel.netns", True),
        ("testbed.kernel.apply", "os", True),
        ("testbed.migration.source", "testbed.plan.steps", False),  # beside it
        ("testbed.plan.compile", "testbed.kernel.netns", False),  # above it
        ("testbed.guest.memory", "testbed.units", True),
        ("testbed.guest.memory", "testbed.measure.ping", False),  # beside it
        ("testbed.guest.memory", "testbed.cli", False),
        ("testbed", "testbed.units", False),
    ],
)
def test_the_rule_of_the_floors(importer: str, imported: str, allowed: bool) -> None:
    assert (breaches(importer, {imported}) == []) is allowed


def test_imports_are_found_wherever_they_are(tmp_path: Path) -> None:
    package = tmp_path / "testbed"
    (package / "lab").mkdir(parents=True)
    file = package / "lab" / "one.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from testbed.cli import main\n"
        "def f():\n    import numpy.linalg\n    from ..plan import steps\n    from . import two\n"
    )
    expected = {"testbed.cli.main", "numpy.linalg", "testbed.plan.steps", "testbed.lab.two"}
    assert expected <= imports(file, package)


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
