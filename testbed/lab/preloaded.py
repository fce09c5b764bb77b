"""The preloaded process that VMX processes are forked from, so that 128 of them start in seconds.

A fork costs what the forking process has in memory: its page tables at once, and a copy of each
page that either side writes later. The supervisor grows with its lab and looks through all that it
has in search of garbage. This process is forked from it before it has a lab, has imported what a
VMX needs, for a migration too, and does nothing but fork.

A VMX is the supervisor's child all the same (CLONE_PARENT): the supervisor reaps it, and its end is
the VMX's end. Should this process be killed, the VMs run on, and the next is forked from another.
"""

from __future__ import annotations

import gc
import json
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from testbed.errors import KernelError, LabError
from testbed.guest.tracking import probe
from testbed.kernel.syscalls import fork_sibling
from testbed.lab import vmx
from testbed.lab.child import become_child

if TYPE_CHECKING:
    from testbed.lab.lines import Message

_ANSWER_DEADLINE_S = 30.0
_LARGEST_REQUEST_BYTES = 65536


class Preloaded:
    """The supervisor's side. To be made before there is anything of the lab in memory."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.settimeout(_ANSWER_DEADLINE_S)
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            become_child(theirs, partial(_serve, supervisor=supervisor), supervisor)
        theirs.close()

    def fork_vmx(self, control: socket.socket, arguments: Message) -> int:
        """Fork a child of the supervisor that runs `vmx.run` with this connection (2-4 ms).

        Returns:
            Its process id.

        Raises:
            LabError: the kernel refused, or it took too long.
        """
        request = json.dumps(arguments).encode()
        try:
            try:
                answer = self._ask(request, control)
            except (EOFError, ConnectionError):  # somebody has killed it
                self.close()
                self._start()
                answer = self._ask(request, control)
        except (EOFError, OSError) as error:
            raise LabError(f"fork a VMX: {error}") from error
        if not answer.isdigit():
            raise LabError(f"fork a VMX: {answer}")
        return int(answer)

    def _ask(self, request: bytes, control: socket.socket) -> str:
        socket.send_fds(self._requests, [request], [control.fileno()])
        answer = self._requests.recv(_LARGEST_REQUEST_BYTES)
        if not answer:
            raise EOFError("its parent ended")
        return answer.decode()

    def close(self) -> None:
        """End it; the VMXs that were forked from it run on."""
        self._requests.close()
        os.waitpid(self.pid, 0)


def _serve(requests: socket.socket, supervisor: int) -> None:
    """Fork until the supervisor closes."""
    with suppress(KernelError):  # then each VMX says so
        probe()
    gc.collect()
    gc.freeze()  # what is left is never looked through again, and so not copied
    while True:
        request, fds, _, _ = socket.recv_fds(requests, _LARGEST_REQUEST_BYTES, 1)
        if not request:
            return
        with socket.socket(fileno=fds[0]) as control:
            try:
                answer = str(fork_sibling())
            except OSError as error:
                answer = str(error.strerror)
            if answer == "0":
                become_child(control, partial(vmx.run, **json.loads(request)), supervisor)
        requests.send(answer.encode())
