"""A VMX waits for the connections of its migration, which its host's agent receives."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from testbed.errors import KernelError
from testbed.lab.agent import LARGEST_MESSAGE_BYTES, NAME, is_root
from testbed.migration.acceptor import Accepted
from testbed.migration.handshake import Keys
from testbed.migration.stream import PeerError

if TYPE_CHECKING:
    from testbed.migration.specification import MigrationSpec

_ANSWER_DEADLINE_S = 10.0


class AgentAcceptor:
    """An `Acceptor` by the agent of the host whose namespace this process is in."""

    def __init__(self, spec: MigrationSpec) -> None:
        """Tell the agent what is waited for.

        Raises:
            KernelError: there is no agent, or it can't listen at an address of the migration.
        """
        # What the guest does is nothing to the agent, and may be long: a trace, for one.
        guest = replace(spec.guest, workloads=())
        with ExitStack() as undo:
            self._agent = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            self._agent.settimeout(_ANSWER_DEADLINE_S)
            try:
                self._agent.connect(NAME)
                if not is_root(self._agent):
                    raise PermissionError(0, "who listens there is not root")
                asked = {"wait": replace(spec, guest=guest).to_json()}
                self._agent.send(json.dumps(asked).encode())
                said = json.loads(self._agent.recv(LARGEST_MESSAGE_BYTES) or b"{}")
            except OSError as error:
                cause = error.strerror or str(error)
                raise KernelError("register with", "the host's agent", cause) from error
            if "error" in said:
                raise KernelError("wait for", "the migration", said["error"])
            self._undo = undo.pop_all()

    def accept(self, spec: MigrationSpec) -> list[Accepted]:
        """All streams of the migration, as they come.

        Raises:
            PeerError: they did not come within the timeout, or the agent ended.
        """
        deadline_ns = time.monotonic_ns() + spec.timeout_ns
        count = len(spec.connections)
        accepted: dict[int, Accepted] = {}
        with ExitStack() as undo:
            while len(accepted) < count:
                said, stream = self._next(deadline_ns - time.monotonic_ns())
                if said is None:
                    came = f": {len(accepted)} of {count} streams did" if accepted else ""
                    limit_s = spec.timeout_ns / 1e9
                    raise PeerError(f"the source did not come within {limit_s:g} s{came}")
                undo.callback(stream.close)
                keys = (bytes.fromhex(said[way]) for way in ("to_destination", "to_source"))
                accepted[said["number"]] = Accepted(stream, said["number"], Keys(*keys))
            undo.pop_all()
        return [accepted[number] for number in sorted(accepted)]

    def _next(self, wait_ns: int) -> tuple[dict[str, Any] | None, socket.socket]:
        self._agent.settimeout(max(wait_ns, 1) / 1e9)
        try:
            data, fds, _, _ = socket.recv_fds(self._agent, LARGEST_MESSAGE_BYTES, 1)
        except TimeoutError:
            return None, self._agent
        except OSError as error:
            raise PeerError(f"the host's agent: {error.strerror}") from error
        if not data:
            raise PeerError("the host's agent ended")
        return json.loads(data), socket.socket(fileno=fds[0])

    def close(self) -> None:
        """Wait no more."""
        self._undo.close()
