"""Latency where the kernel has netem: a wire's ports delay what they send, in order.

The bounds are those of an emulated CPU, on which an echo over the wire alone takes 0.5 to 1 ms.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from testbed.errors import KernelError
from testbed.kernel import builder, readback
from testbed.kernel.undo import remove
from testbed.measure import ping
from testbed.measure.endpoint import Endpoint
from testbed.measure.ping import PingTest
from testbed.plan.policies import Netem
from testbed.plan.steps import Address, Bridge, End, Netns, Veth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.measure.ping_result import PingResult
    from testbed.plan.steps import KernelStep

pytestmark = [pytest.mark.root, pytest.mark.needs_feature("netem")]
MS = 10**6
PATH_NS, BUSY_PATH_NS = 4 * MS, 25 * MS
"""At most what the path takes without its delay: the fastest echo, and half of them."""
NO_IPV6 = ("net/ipv6/conf/default/disable_ipv6", "1")
LEFT, WIRE, RIGHT = "tb-ref-left", "tb-ref-wire", "tb-ref-right"
SOURCE = Endpoint(f"/run/netns/{LEFT}", "10.0.0.1", "vmk0")
DESTINATION = Endpoint(f"/run/netns/{RIGHT}", "10.0.0.2", "vmk0")


def wire(delay_ns: int = 0, jitter_ns: int = 0) -> list[KernelStep]:
    """Two ends, and between them a wire of two ports that both delay, as a plan makes it."""
    steps: list[KernelStep] = [
        Netns(name, name, "host", (NO_IPV6,)) for name in (LEFT, WIRE, RIGHT)
    ]
    steps.append(Bridge(WIRE, "wire", 1500, "wire"))
    for number, netns in enumerate((LEFT, RIGHT), 1):
        port = End(WIRE, netns, 1500, netns, master="wire")
        cable = Veth(End(netns, "vmk0", 1500, "vmk0"), port)
        steps += [cable, Address(netns, "vmk0", f"10.0.0.{number}/24", cable.key)]
        if delay_ns:
            steps.append(Netem(WIRE, netns, cable.key, delay_ns, jitter_ns, limit_packets=1000))
    return steps


@contextmanager
def built(steps: list[KernelStep]) -> Iterator[None]:
    builder.build(steps)
    try:
        yield
    finally:
        remove(steps)


def run(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout


def is_delayed_by(result: PingResult, rtt_ns: int) -> None:
    assert rtt_ns <= result.minimum_ns < rtt_ns + PATH_NS
    assert result.median_ns < rtt_ns + BUSY_PATH_NS


@pytest.mark.parametrize("rtt_ms", [0, 10, 50])
def test_the_round_trip_is_what_the_wire_was_told(rtt_ms: int) -> None:
    with built(wire(rtt_ms * MS // 2)):
        result = ping.measure(SOURCE, DESTINATION, PingTest(count=20, interval_ns=10 * MS))
    assert (result.sent, result.received, result.duplicates) == (20, 20, 0)
    is_delayed_by(result, rtt_ms * MS)


def test_each_direction_has_its_own_delay() -> None:
    steps = [
        replace(step, delay_ns=30 * MS) if isinstance(step, Netem) and step.dev == LEFT else step
        for step in wire(10 * MS)
    ]
    with built(steps):
        result = ping.measure(SOURCE, DESTINATION, PingTest(count=10, interval_ns=10 * MS))
    is_delayed_by(result, 40 * MS)


def test_jitter_spreads_the_delay_and_keeps_the_order() -> None:
    """Echoes each millisecond with 10 +- 5 ms one way: drawn freely, most would overtake."""
    with built(wire(10 * MS, 5 * MS)):
        got = ping.echo(SOURCE, DESTINATION, PingTest(count=200, interval_ns=MS))
    numbers = [number for number, _ in got.arrivals]
    assert len(numbers) == 200
    assert numbers == sorted(numbers)
    trips_ns = sorted(at - got.sent_ns[number] for number, at in got.arrivals)
    assert trips_ns[0] >= 10 * MS
    assert trips_ns[-1] - trips_ns[0] > 2 * MS


@pytest.mark.parametrize(
    "change", ["delay 6ms limit 1000", "delay 5ms 1ms limit 1000", "delay 5ms limit 900"]
)
def test_another_delay_than_the_planned_one_is_found(change: str) -> None:
    steps = wire(5 * MS)
    with built(steps):
        readback.verify(steps)
        run(f"tc -n {WIRE} qdisc change dev {LEFT} root netem {change}")
        with pytest.raises(KernelError):
            readback.verify(steps)


def test_a_wire_without_its_netem_is_found() -> None:
    steps = wire(5 * MS)
    with built(steps):
        run(f"tc -n {WIRE} qdisc delete dev {LEFT} root")
        with pytest.raises(KernelError):
            readback.verify(steps)
