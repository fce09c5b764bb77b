"""What HTB classes make of a link that is fought for: shares, reservations, limits, bursts.

TCP streams of one namespace, each in the class that its socket's priority names. A busy machine
can take away from what a stream gets, so each is tried a few times.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from testbed.errors import KernelError
from testbed.kernel import builder, netns, readback
from testbed.kernel.alteration import alter
from testbed.kernel.htb_change import RunningShape
from testbed.kernel.observation import observe
from testbed.kernel.undo import remove
from testbed.plan.allocation import LEAST_QUANTUM_BYTES, lending_rate_bytes_per_s
from testbed.plan.policies import Shape, TrafficClass
from testbed.plan.steps import Address, End, Netns, Veth

pytestmark = pytest.mark.root

NO_IPV6 = ("net/ipv6/conf/default/disable_ipv6", "1")
A, B = "tb-htb.a", "tb-htb.b"
MTU = 1500
RATE_BPS = 500 * 10**6  # which a busy machine carries, too
LINK = RATE_BPS // 8 * (MTU + 14) // (MTU + 38)  # what HTB is told
NEXT_TO_NOTHING = 125_000  # 1 Mb/s
TRIES = 6
SO_SNDBUFFORCE = 32  # asm-generic/socket.h


def steps_of(shape):
    wire = Veth(End(A, "eth0", MTU, ""), End(B, "eth0", MTU, ""))
    return [
        Netns(A, "a", "host", (NO_IPV6,)),
        Netns(B, "b", "host", (NO_IPV6,)),
        wire,
        shape,
        Address(A, "eth0", "10.0.0.1/24", ""),
        Address(B, "eth0", "10.0.0.2/24", ""),
    ]


def shape_of(*classes):
    """Classes as (part reserved or None, weight, part allowed), the last one the default."""
    made = tuple(
        TrafficClass(
            minor=0x10 + n,
            name=f"class {n}",
            rate_bytes_per_s=NEXT_TO_NOTHING if reserved is None else int(reserved * LINK),
            ceil_bytes_per_s=int(most * LINK),
            quantum_bytes=LEAST_QUANTUM_BYTES * weight,
            burst_bytes=65536,
        )
        for n, (reserved, weight, most) in enumerate(classes)
    )
    return Shape(
        A, "eth0", RATE_BPS, MTU, LINK, 65536, "", classes=made, default=0x10 + len(classes) - 1
    )


@contextmanager
def built(steps):
    builder.build(steps)
    try:
        yield
    finally:
        remove(steps)


class Streams:
    """TCP from A to B, one stream in each class, as fast as they can."""

    def __init__(self, undo, handles):
        with netns.inside(B):
            listener = undo.enter_context(socket.create_server(("10.0.0.2", 5001)))
        self._done = threading.Event()
        self.receivers = []
        senders = []
        for handle in handles:
            with netns.inside(A):
                sender = undo.enter_context(socket.socket())
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, handle)
            sender.connect(("10.0.0.2", 5001))
            self.receivers.append(undo.enter_context(listener.accept()[0]))
            senders.append(sender)
        self._threads = [threading.Thread(target=self._send, args=(one,)) for one in senders]
        undo.callback(self._stop, senders)
        for thread in self._threads:
            thread.start()

    def _send(self, sender):
        block = bytes(1 << 18)
        with contextlib.suppress(OSError):
            while not self._done.is_set():
                sender.sendall(block)

    def _stop(self, senders):
        self._done.set()
        for sender in senders:
            sender.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def bytes_within(self, seconds):
        """Payload that each stream brings from now on, and the seconds that it took."""
        buffer = bytearray(1 << 20)
        taken = dict.fromkeys(self.receivers, 0)
        start = time.monotonic()
        while (now := time.monotonic()) < start + seconds:
            for one in select.select(self.receivers, [], [], 0.1)[0]:
                taken[one] += one.recv_into(buffer)
        return list(taken.values()), now - start

    def parts(self, seconds=1.2, settle_s=0.4):
        """Each stream's per cent of what the link carries of TCP."""
        self.bytes_within(settle_s)
        taken, took = self.bytes_within(seconds)
        return [100 * one / took / (LINK * (MTU - 52) / (MTU + 14)) for one in taken]


def assert_parts(wanted, handles, tolerance=1.0):
    found = []
    for _ in range(TRIES):
        with ExitStack() as undo:
            found.append([round(part, 2) for part in Streams(undo, handles).parts()])
        if all(abs(a - b) <= tolerance for a, b in zip(found[-1], wanted, strict=True)):
            return
    pytest.fail(f"wanted {wanted}, found {found}")


ONLY_SHARES = {"100:50:50": (2, 1, 1), "2:1:1:1": (2, 1, 1, 1)}


@pytest.mark.parametrize("shares", ONLY_SHARES)
def test_saturated_classes_get_their_shares(shares):
    weights = ONLY_SHARES[shares]
    shape = shape_of(*((None, weight, 1) for weight in weights))
    with built(steps_of(shape)):
        handles = [0x10010 + n for n in range(len(weights))]
        assert_parts([100 * weight / sum(weights) for weight in weights], handles)


def test_reservations_are_kept_and_limits_not_exceeded():
    shape = shape_of((0.30, 1, 1), (0.40, 1, 1), (0.15, 1, 1), (0.15, 1, 1))
    with built(steps_of(shape)):
        assert_parts([30, 40, 15, 15], [0x10010, 0x10011, 0x10012, 0x10013])
        limited = shape_of((0.10, 1, 0.20), (0.05, 1, 0.10), (None, 1, 1))
        alter(shape, limited)
        assert_parts([20, 10, 70], [0x10010, 0x10011, 0x10012])


def test_an_idle_reservation_is_shared_by_weight():
    shape = shape_of((0.40, 4, 1), (0.10, 2, 1), (0.10, 1, 1))
    with built(steps_of(shape)):
        # Of what the two have not reserved, 80 %, two thirds and one third.
        assert_parts([10 + 80 * 2 / 3, 10 + 80 / 3], [0x10011, 0x10012])


def test_what_is_taken_off_the_root_is_lent_to_nobody_and_there_for_its_owner():
    shape = shape_of((0.40, 1, 1), (0.30, 1, 1), (0.10, 1, 1))
    with built(steps_of(shape)), RunningShape(shape) as running:
        rate = lending_rate_bytes_per_s(LINK, [LINK * n // 10 for n in (4, 3, 1)], [0, LINK, LINK])
        running.set_rate(1, rate, rate)
        # The others share what nobody has reserved: together the link less the idle reservation.
        assert_parts([40, 20], [0x10011, 0x10012])
        # Whoever comes back has its own at once, before the root is given it back.
        with ExitStack() as undo:
            assert Streams(undo, [0x10011, 0x10012, 0x10010]).parts()[2] > 38


def test_what_names_no_class_goes_to_the_default_one():
    shape = shape_of((0.50, 1, 1), (0.10, 1, 0.20))
    with built(steps_of(shape)):
        assert_parts([20], [0])


def test_classes_within_the_default_class_divide_its_part():
    shape = shape_of((None, 1, 1), (None, 1, 1))
    inside = tuple(
        TrafficClass(
            minor, f"vm {minor:x}", NEXT_TO_NOTHING, LINK, LEAST_QUANTUM_BYTES * weight, 65536, 2
        )
        for minor, weight in ((0x8000, 1), (0x8001, 3))
    )
    shape = replace(shape, classes=shape.classes + inside)
    with built(steps_of(shape)):
        readback.verify([shape])
        assert_parts([50, 12.5, 37.5], [0x10010, 0x28000, 0x28001])


def test_a_burst_passes_at_the_peak_then_the_average_holds():
    average, peak, burst = 25_000_000, 62_500_000, 12_500_000  # 200 and 500 Mb/s
    shape = Shape(A, "eth0", 10**9, MTU, average, burst, "", ceil_bytes_per_s=peak)
    payload = (MTU - 52) / (MTU + 14)
    # While the peak lasts the average goes on filling up what the peak takes away.
    peak_s = burst / (peak - average)
    found = []
    with built(steps_of(shape)):
        for _ in range(TRIES):
            with ExitStack() as undo:
                streams = Streams(undo, [0])
                first, first_s = streams.bytes_within(peak_s * 0.8)
                streams.bytes_within(peak_s * 0.5)
                then, then_s = streams.bytes_within(0.8)
            at_first = first[0] / first_s / payload / peak
            afterwards = then[0] / then_s / payload / average
            found.append((round(at_first, 3), round(afterwards, 3)))
            if 0.95 < at_first < 1.02 and 0.98 < afterwards < 1.02:
                return
            time.sleep(burst / average)  # the bucket fills
    pytest.fail(f"{found} of the peak and of the average")


def test_a_change_keeps_what_is_not_changed():
    shape = shape_of((0.30, 1, 1), (0.40, 1, 1), (0.10, 1, 1))
    link = f"link {A}/eth0"
    steps = steps_of(shape)
    with built(steps):
        with netns.inside(A), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 0x10012)
            sender.sendto(b"here", ("10.0.0.2", 9))  # ARP goes to this class, too
        before = observe(steps)[link]
        first, second, last = shape.classes
        added = replace(first, minor=0x20, name="added")
        faster = replace(last, rate_bytes_per_s=LINK // 5, quantum_bytes=262144)
        changed = replace(shape, classes=(first, added, faster))  # `second` goes
        alter(shape, changed)
        readback.verify([changed])
        after = observe(steps)[link]
        assert sorted(after.classes) == [1, 0x10, 0x12, 0x20]
        assert after.classes[0x12].sent_bytes >= before.classes[0x12].sent_bytes > 0
        assert after.classes[0x12].rate == LINK // 5
        alter(changed, shape)
        readback.verify([shape])
        other = replace(shape, default=second.minor)  # made anew
        alter(shape, other)
        readback.verify([other])
        assert observe(steps)[link].classes[0x12].sent_bytes == 0
        inside = replace(first, minor=0x8000, major=2)
        alter(other, replace(other, classes=(*shape.classes, inside)))
        alter(replace(other, classes=(*shape.classes, inside)), other)
        plain = replace(shape, classes=(), default=1)
        alter(other, plain)
        readback.verify([plain])


def test_a_refused_change_leaves_all_as_it_was():
    shape = shape_of((0.30, 1, 1), (0.10, 1, 1))
    with built(steps_of(shape)):
        first, last = shape.classes
        twice = replace(first, minor=0x100)
        bad = replace(shape, classes=(last, twice, twice))  # `first` goes, `twice` comes
        with pytest.raises(KernelError, match="EEXIST"):
            alter(shape, bad)
        readback.verify([shape])


def test_a_running_class_is_changed_at_once_and_counted():
    shape = shape_of((0.30, 1, 0.5), (0.10, 1, 1))
    with built(steps_of(shape)), RunningShape(shape) as running, ExitStack() as undo:
        streams = Streams(undo, [0x10010])
        streams.bytes_within(0.4)
        before = running.read()[0x10].sent_bytes
        running.set_rate(0x10, LINK // 10, LINK // 10)
        assert running.read()[0x10].ceil == LINK // 10
        for _ in range(TRIES):
            (part,) = streams.parts()
            if abs(part - 10) < 0.5:
                break
        else:
            pytest.fail(f"{part} % instead of 10 %")
        assert running.read()[0x10].sent_bytes > before
        with pytest.raises(KernelError, match="there is none"):
            running.set_rate(0x99, 1000)


@pytest.mark.parametrize("frames", [20, 1000])
def test_so_many_frames_wait_and_no_more(frames):
    """Datagrams sent at once into a slow class: what does not fit is dropped and counted."""
    size = 14 + 20 + 8 + 1000
    slow = replace(shape_of((None, 1, 1)), htb_rate_bytes_per_s=NEXT_TO_NOTHING)
    slow = replace(
        slow,
        classes=(replace(slow.classes[0], ceil_bytes_per_s=NEXT_TO_NOTHING, burst_bytes=1600),),
        queue_bytes=frames * size,
    )
    steps = steps_of(slow)
    with built(steps), ExitStack() as undo:
        readback.verify(steps)
        with netns.inside(A):
            sender = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 26)
        sender.connect(("10.0.0.2", 9))
        sent = 1500
        sender.send(b"ARP")
        time.sleep(0.05)
        for _ in range(sent):
            with contextlib.suppress(ConnectionRefusedError):
                sender.send(bytes(1000))
        seen = observe(steps)[f"link {A}/eth0"]
        leaf = seen.classes[0x10]
        assert leaf.queued_packets <= frames
        assert 0 <= sent - frames - leaf.dropped <= 100  # those that left meanwhile
        assert seen.qdisc.dropped >= leaf.dropped
