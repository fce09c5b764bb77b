"""What a stream's bytes cost is charged once, though one thread sends and another receives."""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace

from testbed.guest.specification import GuestSpec
from testbed.migration import charging, tcp_info
from testbed.migration.specification import MigrationSpec

SPEC = MigrationSpec(
    1, secrets.token_bytes(32), GuestSpec("vm", 4 << 20, 1), "::1", "::2", cycles_per_byte=2
)
MIB = 1 << 20


def test_bytes_of_two_threads_are_charged_once(monkeypatch):
    charged, settling = [], threading.Event()

    def settle(cycles=0):
        charged.append(cycles)
        settling.set()
        if len(charged) == 1:
            time.sleep(0.2)  # the other thread gets as far as it can
        return 0

    ledger = SimpleNamespace(
        worker=lambda *_, **__: nullcontext(SimpleNamespace(settle=settle)),
    )
    info = SimpleNamespace(mss_bytes=1448)
    monkeypatch.setattr(tcp_info, "read", lambda _: info)
    stream = SimpleNamespace(socket=None, turn=lambda: None, pay=None)
    with ExitStack() as undo:
        charging.charge(stream, SPEC, ledger, undo)
        large = threading.Thread(target=stream.pay, args=(MIB,))
        small = threading.Thread(target=stream.pay, args=(16,))
        large.start()
        assert settling.wait(10)
        small.start()
        large.join(10)
        small.join(10)
        stream.pay(MIB)
    assert sum(charged) == 2 * (2 * MIB + 16)
