"""iperf3 between two network namespaces (why the program: docs/decisions/0003-iperf3.md)."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import MeasurementError
from testbed.measure.endpoint import require_same_ip_version
from testbed.measure.iperf_result import INTERVAL_S, IperfResult, parse
from testbed.measure.processes import exited_within, running

if TYPE_CHECKING:
    import subprocess

    from testbed.measure.endpoint import Endpoint
    from testbed.measure.iperf_result import IperfTest

LISTENING_WITHIN_S = 10
CONNECT_WITHIN_MS = 5000
TIMEOUT_MARGIN_S = 10
"""Beyond the test's own duration: connecting, handing over the results, a busy machine."""
TCP_LISTEN = "0A"  # include/net/tcp_states.h


def measure(source: Endpoint, destination: Endpoint, test: IperfTest) -> IperfResult:
    """Runs one iperf3 test: a server at `destination`, a client at `source`.

    Raises:
        MeasurementError: iperf3 is missing, the server didn't listen, the client couldn't
            connect, the test was cut short, exceeded its time, or used another congestion
            control than asked. No iperf3 process is left in any case.
    """
    require_same_ip_version(source, destination)
    if shutil.which("iperf3") is None:
        raise MeasurementError("run iperf3: it is not installed; apt-get install iperf3")
    timeout_s = test.timeout_s
    if timeout_s is None:
        timeout_s = (test.duration_s or 60) + test.omit_s + TIMEOUT_MARGIN_S
    what = f"iperf3 from {source} to {destination}"
    with ExitStack() as stack:
        server_out = _memory_file(stack, "server")
        server = stack.enter_context(
            running(
                destination.netns_path,
                _server(destination, test),
                server_out,
                server_out,
            )
        )
        _wait_until_listening(server, test.port, server_out, what)
        out, errors = _memory_file(stack, "client"), _memory_file(stack, "client-errors")
        started_ns = time.monotonic_ns()
        client = stack.enter_context(
            running(source.netns_path, _client(source, destination, test), out, errors)
        )
        pidfd = os.pidfd_open(client.pid)
        stack.callback(os.close, pidfd)
        if not exited_within(pidfd, timeout_s):
            raise MeasurementError(
                f"{what}: not done within {timeout_s:g} s; is a link of the path down, "
                "or too slow for the volume asked?"
            )
        ended_ns = time.monotonic_ns()
        text = _contents(out)
        if not text.strip():
            raise MeasurementError(
                f"{what}: iperf3 printed no result: {_contents(errors).strip() or 'nothing at all'}"
            )
    return parse(text, test, what, started_ns, ended_ns)


def _client(source: Endpoint, destination: Endpoint, test: IperfTest) -> list[str]:
    command = ["iperf3", "--json", f"--interval={INTERVAL_S:g}", f"--port={test.port}"]
    command += ["--client", destination.address, "--bind", source.address, *_device(source)]
    command += [f"--parallel={test.streams}", f"--connect-timeout={CONNECT_WITHIN_MS}"]
    if test.volume_bytes is not None:
        command.append(f"--bytes={test.volume_bytes}")
    else:
        command.append(f"--time={test.duration_s}")
    if test.block_bytes is not None:
        command.append(f"--length={test.block_bytes}")
    if test.omit_s:
        command.append(f"--omit={test.omit_s}")
    if test.reverse:
        command.append("--reverse")
    if test.udp_rate_bps is not None:
        command += ["--udp", f"--bitrate={test.udp_rate_bps}"]
    else:
        command.append(f"--congestion={test.congestion_control}")
    return command


def _server(destination: Endpoint, test: IperfTest) -> list[str]:
    command = ["iperf3", "--server", "--one-off", "--forceflush", f"--port={test.port}"]
    return [*command, "--bind", destination.address, *_device(destination)]


def _device(endpoint: Endpoint) -> list[str]:
    return ["--bind-dev", endpoint.device] if endpoint.device else []


def _memory_file(stack: ExitStack, name: str) -> int:
    """A file in memory for what a program prints: unlike a pipe it never fills up."""
    descriptor = os.memfd_create(f"iperf3-{name}", os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _contents(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")


def _wait_until_listening(
    server: subprocess.Popen[bytes], port: int, output: int, what: str
) -> None:
    """Waits until a listening socket on the port is the server's own, not another one's."""
    deadline = time.monotonic() + LISTENING_WITHIN_S
    pidfd = os.pidfd_open(server.pid)
    try:
        while not _listens(server.pid, port):
            if exited_within(pidfd, 0.002):
                raise MeasurementError(f"{what}: the server ended: {_contents(output).strip()}")
            if time.monotonic() > deadline:
                raise MeasurementError(
                    f"{what}: the server did not listen within {LISTENING_WITHIN_S} s"
                )
    finally:
        os.close(pidfd)


def _listens(pid: int, port: int) -> bool:
    process = Path(f"/proc/{pid}")
    own = set()
    with contextlib.suppress(OSError):  # it has just ended: the caller sees that
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(str(descriptor.readlink()))
        for table in ("tcp", "tcp6"):
            for line in (process / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()  # number, local, remote, state, ..., [9] inode
                listening = (
                    fields[3] == TCP_LISTEN and int(fields[1].rpartition(":")[2], 16) == port
                )
                if listening and f"socket:[{fields[9]}]" in own:
                    return True
    return False
