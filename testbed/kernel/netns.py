"""Named network namespaces, the way `ip netns` keeps them."""

from __future__ import annotations

import errno
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from testbed.errors import KernelError
from testbed.kernel import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUN_NETNS = Path("/run/netns")
_HERE = "/proc/thread-self/ns/net"
_T = TypeVar("_T")


def path_of(name: str) -> str:
    """Where the namespace `name` is mounted."""
    return f"/run/netns/{name}"


def prepare() -> None:
    """Make /run/netns as iproute2 does, so that `ip netns` sees what is put there.

    A shared mount of itself: namespaces then appear in and vanish from every mount
    namespace alike, and none is kept alive by a service that was started meanwhile.

    Raises:
        KernelError: it cannot be made.
    """
    directory = str(RUN_NETNS)
    try:
        RUN_NETNS.mkdir(mode=0o755, exist_ok=True)
        try:
            syscalls.mount("", directory, syscalls.MS_SHARED | syscalls.MS_REC)
        except OSError:  # not a mount yet
            syscalls.mount(directory, directory, syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.mount("", directory, syscalls.MS_SHARED | syscalls.MS_REC)
    except OSError as error:
        raise KernelError(
            "prepare", directory, str(error.strerror), "run as root, in a privileged container"
        ) from error


def create(name: str) -> None:
    """Make a namespace, name it, and leave the calling thread inside.

    Call it in a thread of its own (`in_thread`), after `prepare`. lo is down.

    Raises:
        KernelError: the name is taken, or the kernel refuses; nothing is left.
    """
    path = path_of(name)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError:
        raise KernelError(
            "create namespace",
            name,
            f"{path} exists and this build did not make it",
            f"choose another lab name, or remove it with `ip netns delete {name}`"
            " if nothing needs it",
        ) from None
    except OSError as error:
        raise KernelError(
            "create namespace", name, str(error.strerror), "choose a shorter name without slashes"
        ) from error
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        syscalls.mount(_HERE, path, syscalls.MS_BIND)
    except OSError as error:
        os.unlink(path)  # noqa: PTH108 - pathlib costs four times as much
        raise KernelError(
            "create namespace",
            name,
            str(error.strerror),
            "run as root; see `sysctl user.max_net_namespaces`",
        ) from error


def remove(name: str) -> bool:
    """Unmount and unlink a namespace; False when there was none of that name.

    The kernel then frees what is in it, within 0.1 s, unless a process or socket is inside.

    Raises:
        KernelError: the kernel refuses.
    """
    path = path_of(name)
    try:
        try:
            syscalls.unmount(path)
        except OSError as error:
            if error.errno != errno.EINVAL:  # nothing is mounted there: left by a crash
                raise
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError(
            "remove namespace", name, str(error.strerror), f"see `findmnt {path}`"
        ) from error
    return True


def names() -> tuple[str, ...]:
    """All named namespaces of this machine, sorted."""
    try:
        return tuple(sorted(os.listdir(RUN_NETNS)))  # noqa: PTH208
    except FileNotFoundError:
        return ()


def identity(name: str) -> int:
    """The inode of a namespace: equal for two names only if they mean the same one.

    Raises:
        KernelError: there is no such namespace.
    """
    try:
        return os.stat(path_of(name)).st_ino  # noqa: PTH116
    except OSError as error:
        raise _missing(name, error) from error


def open_fd(name: str) -> int:
    """A descriptor on a namespace, for the caller to close.

    Raises:
        KernelError: there is no such namespace.
    """
    try:
        return os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _missing(name, error) from error


def _missing(name: str, error: OSError) -> KernelError:
    return KernelError(
        "open namespace", name, str(error.strerror), "is the lab up? see `ip netns list`"
    )


def enter(name: str) -> None:
    """Move the calling thread into a namespace for good: for a process about to exec.

    Raises:
        KernelError: there is no such namespace, or the kernel refuses.
    """
    fd = open_fd(name)
    try:
        syscalls.setns(fd)
    except OSError as error:
        raise KernelError("enter namespace", name, str(error.strerror), "run as root") from error
    finally:
        os.close(fd)


@contextmanager
def home() -> Iterator[Callable[[], None]]:
    """Bring the calling thread back to its network namespace at the end, and when called."""
    fd = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield lambda: syscalls.setns(fd)
    finally:
        try:
            syscalls.setns(fd)
        finally:
            os.close(fd)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in namespace `name` within the block: open sockets there.

    Only this thread moves; processes that it starts inside the block move with it.

    Raises:
        KernelError: there is no such namespace, or the kernel refuses.
    """
    with home():
        enter(name)
        yield


def in_thread(function: Callable[[threading.Event], _T]) -> _T:
    """The result of `function` in a thread of its own, which may change its namespaces.

    What runs here can undo its work undisturbed: Ctrl-C, SIGTERM and SIGHUP only set the event that
    it is given, whereupon it should give up, and are delivered once it is done.

    Raises:
        BaseException: whatever `function` raises.
    """
    stop = threading.Event()
    results: list[_T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function(stop))
        except BaseException as error:  # noqa: BLE001, RUF100 - handed to the caller below
            failures.append(error)

    thread = threading.Thread(target=run, name="netns", daemon=False)
    with _deferred(stop):
        thread.start()
        thread.join()
    if failures:
        raise failures[0]
    return results[0]


@contextmanager
def _deferred(stop: threading.Event) -> Iterator[None]:
    """Signals that would end this process set `stop`, and are sent again after the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread runs signal handlers
        return
    arrived: list[int] = []
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def note(number: int, _: object) -> None:
        arrived.append(number)
        stop.set()

    usual: dict[int, Any] = {}
    try:
        for number in numbers:
            # One that is ignored stays so; None is a handler that Python did not install.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                usual[number] = signal.signal(number, note)
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)
