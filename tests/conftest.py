"""What holds for every test: it leaves nothing behind, and is not skipped unnoticed.

As root the whole session runs in a mount namespace of its own, with an empty /run/netns and
/run/testbed, so that labs of the machine's and other test runs are neither seen nor disturbed.
(To look inside: `nsenter --mount --target PID ip netns`.) The network namespace is the machine's.

Markers: `root`; `needs_program("tcpdump")`; `needs_feature("netem")`, names in FEATURES.
With TESTBED_REQUIRE_ALL=1 a skipped test is a failure, unless this kernel lacks a feature; with
TESTBED_REQUIRE_ALL=kernel (scripts/reference-kernel) also if it does.
"""

# os and not pathlib where it runs twice a test: it takes a third of the time
# ruff: noqa: PTH115, PTH116, PTH123, PTH208

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import gc
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GRACE_S = 20.0
"""How long a leak may take to vanish: the kernel frees namespaces and processes in its own time."""

PRIVATE_FOLDERS = ("/run/netns", "/run/testbed")
KERNEL_LACKS = "this kernel lacks"
CLONE_NEWNS, MS_REC, MS_PRIVATE, MS_SHARED = 0x20000, 0x4000, 1 << 18, 1 << 20  # linux/mount.h

# ---------------------------------------------------------------- what a test may need


def _accepted(commands: str) -> Callable[[], bool]:
    """A probe: does the kernel take these commands in a network namespace of its own?"""

    def probe() -> bool:
        line = ["unshare", "--net", "--", "sh", "-ec", commands]
        return subprocess.run(line, capture_output=True, check=False).returncode == 0

    return probe


def _has_pagemap_scan() -> bool:
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        try:
            fcntl.ioctl(pagemap, 0xC0606610, bytes(96))  # PAGEMAP_SCAN, Linux 6.7
        except OSError as error:
            return error.errno != errno.ENOTTY
    return True


FEATURES: dict[str, Callable[[], bool]] = {
    "netem": _accepted("tc qdisc add dev lo root netem delay 1ms"),
    "8021q": _accepted("ip link add br5 type bridge; ip link add link br5 type vlan id 5"),
    "bonding": _accepted("ip link add bond5 type bond"),
    "vlan_filtering": _accepted("ip link add br5 type bridge vlan_filtering 1"),
    "pagemap_scan": _has_pagemap_scan,
}
"""Kernel features that a machine may lack with good reason; testbed then has another way."""


@functools.cache
def has_feature(name: str) -> bool:
    return FEATURES[name]()


def why_not(item: pytest.Item) -> str | None:
    """Why this test can't run here; None if it can."""
    if item.get_closest_marker("root"):
        if os.geteuid() != 0:
            return "needs root: sudo scripts/test"
        if not item.config.stash[private_mounts]:
            return "needs CAP_SYS_ADMIN, which root lacks here: run the container privileged"
    for marker in item.iter_markers("needs_program"):
        for program in marker.args:
            if shutil.which(program) is None:
                return f"needs the program {program}: sudo scripts/install"
    for marker in item.iter_markers("needs_feature"):
        for feature in marker.args:
            if not has_feature(feature):
                return f"{KERNEL_LACKS} {feature}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = why_not(item)
    if reason is not None:
        pytest.skip(reason)


def _skip_is_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    required = os.environ.get("TESTBED_REQUIRE_ALL")
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if required == "kernel" or (required == "1" and KERNEL_LACKS not in reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, though TESTBED_REQUIRE_ALL={required}: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    _skip_is_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _skip_is_failure(report)
    return report


# ---------------------------------------------------------------- the session's own folders

private_mounts = pytest.StashKey[bool]()
private_temporary = pytest.StashKey[Path]()


def _enter_private_mounts() -> bool:
    """Whether this process now has mounts of its own; False without CAP_SYS_ADMIN."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
        if libc.mount(source, target, kind, flags, None) != 0:
            raise OSError(ctypes.get_errno(), f"mount {target!r}")

    if os.geteuid() != 0 or libc.unshare(CLONE_NEWNS) != 0:
        return False
    mount(b"none", b"/", None, MS_REC | MS_PRIVATE)
    for folder in PRIVATE_FOLDERS:
        Path(folder).mkdir(parents=True, exist_ok=True)
        mount(b"tmpfs", folder.encode(), b"tmpfs", 0)
        mount(b"none", folder.encode(), None, MS_SHARED)  # as it is on a real machine
    return True


def pytest_configure(config: pytest.Config) -> None:
    # A deadline for one example fails on a busy machine, whatever the code does.
    hypothesis.settings.register_profile("testbed", deadline=None)
    hypothesis.settings.load_profile("testbed")
    config.stash[private_mounts] = _enter_private_mounts()
    # Temporary files go to a folder of this session's, so that what stays in it is a test's.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path stays there
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="testbed-tests-")
    config.stash[private_temporary] = Path(tempfile.tempdir)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[private_temporary], ignore_errors=True)


# ---------------------------------------------------------------- the leak check

State = dict[str, frozenset[str]]
NONE: frozenset[str] = frozenset()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4096) or b""
    except OSError:  # write-only or gone
        return b""


def _process(pid: str) -> str:
    words = _read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")
    return f"{pid} {' '.join(words).strip() or '(ended, never waited for)'}"


def _processes(*, orphans: bool) -> frozenset[str]:
    """Children of this process; with `orphans` also all that share its mount namespace."""
    found = {pid for task in os.listdir("/proc/self/task") for pid in _children(task)}
    if orphans:
        own = os.stat("/proc/self/ns/mnt").st_ino
        found |= {pid for pid in os.listdir("/proc") if pid.isdigit() and _mounts_of(pid) == own}
    tracker = getattr(resource_tracker._resource_tracker, "_pid", None)  # one for all tests
    return frozenset(map(_process, found - {str(os.getpid()), str(tracker)}))


def _children(task: str) -> list[str]:
    return _read(f"/proc/self/task/{task}/children").decode().split()


def _mounts_of(pid: str) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return None


def _descriptors() -> frozenset[str]:
    """Open sockets, pipes, memfds, namespaces and the like; ordinary files are left out."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the listing's own
            continue
        if not target.startswith("/") or target.startswith("/memfd:"):
            found.add(f"{number} -> {target}")
    return frozenset(found)


def _files() -> frozenset[str]:
    temporary = tempfile.gettempdir()
    made = {f"{temporary}/{name}" for name in os.listdir(temporary) if name[:5] != "pymp-"}
    for folder, folders, names in os.walk("/run/testbed"):
        made |= {f"{folder}/{name}" for name in folders + names}
    return frozenset(made)


@functools.cache
def _sysctl_paths() -> tuple[str, ...]:
    """Settings of the root namespace and of the memory that a careless test could change."""
    root = Path("/proc/sys")
    patterns = ("net/core/*", "net/ipv4/*", "net/bridge/*", "net/ipv[46]/conf/[ad][le][lf]*/*")
    memory = ("vm/nr_*hugepages", "vm/overcommit_memory", "vm/unprivileged_userfaultfd")
    found = [path for pattern in (*patterns, *memory) for path in root.glob(pattern)]
    return tuple(str(path) for path in found if path.is_file())


def _state(*, thorough: bool) -> State:
    state = {
        "thread": frozenset(f"{t.name} {t.ident}" for t in threading.enumerate()),
        "process": _processes(orphans=thorough),
        "descriptor": _descriptors(),
        "file": _files(),
        "network namespace": frozenset(os.listdir("/run/netns") if thorough else ()),
        "mount": frozenset(
            line.split(" ", 3)[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ),
        "link": frozenset(name for _, name in socket.if_nameindex()),
    }
    if thorough:
        values = ((path, _read(path).decode(errors="replace").strip()) for path in _sysctl_paths())
        state["sysctl"] = frozenset(f"{path} = {value}" for path, value in values)
    return state


def _leaks(before: State, after: State) -> list[str]:
    """What is new, and of links and sysctls also what is gone."""
    found = [f"leaked {kind}: {what}" for kind in before for what in after[kind] - before[kind]]
    for kind in ("link", "sysctl"):
        found += [
            f"lost {kind}: {what}" for what in before.get(kind, ()) if what not in after[kind]
        ]
    return sorted(found)


def _check(thorough: bool) -> Iterator[None]:
    before = _state(thorough=thorough)
    yield
    leaks = _leaks(before, _state(thorough=thorough))
    deadline = time.monotonic() + GRACE_S
    while leaks and time.monotonic() < deadline:
        gc.collect()  # sockets and processes of objects in reference cycles
        time.sleep(0.01)
        leaks = _leaks(before, _state(thorough=thorough))
    if leaks:
        pytest.fail("\n".join(leaks), pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def session_leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Finds what fixtures of a wider scope than one test leave."""
    yield from _check(thorough=request.config.stash[private_mounts])


@pytest.fixture(autouse=True)
def test_leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a namespace, link, process, mount, file, sysctl or descriptor.

    Tests marked `root` are checked for orphaned processes and sysctls too (12 ms, else 1 ms).
    """
    root = request.node.get_closest_marker("root") is not None
    yield from _check(thorough=root and request.config.stash[private_mounts])
