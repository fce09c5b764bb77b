"""The leak check of tests/conftest.py catches each kind of leak, and only leaks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text()
MARKERS = "\n[pytest]\nmarkers =\n    root\n    needs_program(*names)\n    needs_feature(*names)\n"

LEAKY = """
import os, socket, subprocess, tempfile, threading
import pytest

def test_leaks_nothing(tmp_path):
    (tmp_path / "own").write_text("")
    with socket.socket(), tempfile.TemporaryFile():
        subprocess.run(["true"], check=True)

def test_process():
    KEEP.append(subprocess.Popen(["sleep", "60"]))

def test_descriptor():
    os.memfd_create("leak")

def test_file():
    tempfile.mkstemp()

def test_thread():
    stop = threading.Event()
    KEEP.append(stop)
    threading.Thread(target=stop.wait, daemon=True).start()

@pytest.fixture(scope="module")
def wide():
    child = subprocess.Popen(["sleep", "60"])
    KEEP.append(child)
    yield child

def test_fixture_of_the_module_may_outlive_a_test(wide):
    assert wide.poll() is None
"""

LEAKY_AS_ROOT = """
import subprocess
import pytest

pytestmark = pytest.mark.root

def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

def test_leaks_nothing():
    run("unshare", "--net", "ip", "link", "add", "br5", "type", "bridge")
    run("ip", "netns", "add", "kept")
    run("ip", "netns", "delete", "kept")

def test_namespace():
    run("ip", "netns", "add", "left")

def test_orphan():
    pid = run("sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!").strip()
    KEEP.append(int(pid))

def test_mount(tmp_path):
    run("mount", "-t", "tmpfs", "none", str(tmp_path))
"""

# The inner session's grace is short, and what its tests leave is taken away at its end.
INNER = (
    CONFTEST.replace("GRACE_S = 20.0", "GRACE_S = 0.1").replace(
        "def pytest_unconfigure(", "def _unconfigure("
    )
    + """
KEEP = []
__import__("builtins").KEEP = KEEP

def pytest_unconfigure(config):
    import signal
    for kept in KEEP:
        pid = kept if isinstance(kept, int) else getattr(kept, "pid", None)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        if hasattr(kept, "wait") and pid is not None:
            kept.wait()
    _unconfigure(config)
"""
)


def failures(pytester: pytest.Pytester, tests: str) -> tuple[dict[str, int], dict[str, str]]:
    """Runs tests under the conftest; the outcome, and of each failed teardown its message."""
    pytester.makeini(MARKERS)
    pytester.makeconftest(INNER)
    pytester.makepyfile(tests)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    teardowns = re.split(r"^_+ ERROR at teardown of (\w+) _+$", result.stdout.str(), flags=re.M)
    return result.parseoutcomes(), dict(zip(teardowns[1::2], teardowns[2::2], strict=True))


def test_each_kind_of_leak_fails_its_test(pytester: pytest.Pytester) -> None:
    outcomes, messages = failures(pytester, LEAKY)
    last = "test_fixture_of_the_module_may_outlive_a_test"  # the session's check reports there
    assert outcomes == {"passed": 6, "errors": 5}
    assert set(messages) == {"test_process", "test_descriptor", "test_file", "test_thread", last}
    assert re.search(r"leaked process: \d+ sleep 60", messages["test_process"])
    assert re.search(r"leaked descriptor: \d+ -> /memfd:leak", messages["test_descriptor"])
    assert "leaked file: /" in messages["test_file"]
    assert "leaked thread: " in messages["test_thread"]
    # The test's and the fixture's; under CI pytest tells them again in its summary.
    assert len(set(re.findall(r"leaked process: (\d+) sleep", messages[last]))) == 2


@pytest.mark.root
def test_leaks_that_only_root_can_make(pytester: pytest.Pytester) -> None:
    outcomes, messages = failures(pytester, LEAKY_AS_ROOT)
    assert outcomes["passed"] == 4
    assert "leaked network namespace: left" in messages["test_namespace"]
    assert re.search(r"leaked process: \d+ sleep 60", messages["test_orphan"])
    assert "leaked mount: / " in messages["test_mount"]
    assert "test_leaks_nothing" not in messages
    assert not Path("/run/netns/left").exists()  # it was in the inner session's own /run/netns


NEEDY = """
import pytest

@pytest.mark.needs_program("no-such-program")
def test_program(): ...

@pytest.mark.needs_feature("lacking")
def test_feature(): ...

@pytest.mark.needs_program("sh")
def test_runs(): ...

def test_own_skip():
    pytest.skip("why not")

@pytest.mark.xfail(strict=True)
def test_expected_failure():
    assert False
"""


@pytest.mark.parametrize(
    ("require_all", "expected"),
    [
        ("1", {"passed": 1, "xfailed": 1, "skipped": 1, "failed": 1, "errors": 1}),
        ("kernel", {"passed": 1, "xfailed": 1, "failed": 1, "errors": 2}),
        ("0", {"passed": 1, "xfailed": 1, "skipped": 3}),
    ],
)
def test_a_skip_is_a_failure_where_all_is_required(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    require_all: str,
    expected: dict[str, int],
) -> None:
    monkeypatch.setenv("TESTBED_REQUIRE_ALL", require_all)
    pytester.makeini(MARKERS)
    pytester.makeconftest(CONFTEST + '\nFEATURES["lacking"] = lambda: False\n')
    pytester.makepyfile(NEEDY)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rs")
    assert result.parseoutcomes() == expected
    result.stdout.fnmatch_lines(["*no-such-program*"])
    result.stdout.fnmatch_lines(["*this kernel lacks lacking"])
