"""The destination's streams: all of them into one memory."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from testbed.migration import tcp_info
from testbed.migration.charging import charge
from testbed.migration.encrypted import proved
from testbed.migration.helpers import StreamHelpers
from testbed.migration.receiver import Arrivals, Receiver
from testbed.migration.stream import PeerError, Stream, reason
from testbed.migration.wire import Frame, WireError, pack_error

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.ledger import Ledger
    from testbed.migration.acceptor import Accepted
    from testbed.migration.specification import MigrationSpec


class Incoming:
    """All connections of one migration. A context manager."""

    def __init__(
        self,
        spec: MigrationSpec,
        accepted: list[Accepted],
        memory: Memory,
        ledger: Ledger | None = None,
        expect: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> None:
        """They are its own from now on.

        What the bytes cost is charged to the ledger. `expect` makes ready for pages that come only
        after resume; None: there may be none.
        """
        self.arrivals, self._expect = Arrivals(memory), expect
        with ExitStack() as undo:
            for one in accepted:
                undo.callback(one.socket.close)
            self.streams = [proved(one.socket, spec, one.keys, at_source=False) for one in accepted]
            self._helpers = undo.enter_context(StreamHelpers(len(accepted)))
            self._undo = undo.pop_all()
        for number, stream in enumerate(self.streams):
            stream.turn = self._helpers.check
            stream.name = f"stream {number}: " if len(accepted) > 1 else ""
            # One that has done its part is silent until the slowest has: that is no sign of death.
            stream.moved = self._received_bytes
            charge(stream, spec, ledger, self._undo)

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def first(self) -> Stream:
        """The stream that carries control messages."""
        return self.streams[0]

    def _received_bytes(self) -> int:
        return sum(tcp_info.received_bytes(stream.socket) for stream in self.streams)

    def copy(self) -> int:
        """Receive until the source says on every stream that it was all.

        Returns:
            The number of the last iteration, for LOADED.

        Raises:
            PeerError: the source has gone, gave up, or is stuck.
            WireError: a frame is not what it should be, or memory is not whole.
        """
        last: dict[int, Frame] = {}

        def job(number: int) -> None:
            first = number == 0
            receiver = Receiver(self.streams[number], self.arrivals, self._expect, first=first)
            last[number] = receiver.copy()

        self._helpers.run(job, _nothing)
        iterations = sorted({frame.value for frame in last.values()})
        if len(iterations) > 1:
            raise WireError(f"SWITCHOVER of different iterations: {iterations}")
        self.arrivals.check(iterations[0], sum(frame.count for frame in last.values()))
        return iterations[0]

    def fail(self, error: Exception) -> str:
        """Tell the source, on every stream that takes it at once; returns why it failed."""
        cause = reason(error, self.streams)
        for stream in self.streams:
            stream.timeout_ns, stream.turn = 0, _nothing
            with suppress(PeerError):
                stream.send(pack_error(cause))
        return cause


def _nothing() -> None:
    pass
