"""Bandwidth on an uplink as HTB classes: NIOC, QoS on the NIC, a switch's queues.

HTB gives a class its rate first, then shares what is left by quantum, up to its ceil: just
what a reservation, shares and a limit mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.plan.policies import TrafficClass
from testbed.plan.shaping import burst_bytes, htb_rate_bytes_per_s
from testbed.topology.traffic import SYSTEM_TRAFFIC, traffic_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from testbed.topology.policy import Allocation, NicShare, Nioc, SwitchQueues

LEAST_QUANTUM_BYTES = 81920
"""Above a whole train of TCP segments, which HTB counts with a header for each: 68130 bytes at
MTU 1500. With less a class sends a train in its turn all the same, and shares are wrong: 65536
makes 49.0, 25.5 and 25.5 % of 100:50:50."""

FIRST_MINOR = 0x10
QUEUE_MINOR = 0x40
VM_MINOR = 0x8000
"""From here on the classes of single VMs, in a qdisc of their own inside the VMs' class."""

_LEAST_PART = 10_000
_OTHERS_SHARES = 50  # "normal"


def type_minor(traffic: str) -> int:
    """The class number of a system traffic type."""
    return FIRST_MINOR + traffic_number(traffic)


def vm_minor(number: int) -> int:
    """The class number of a VM's adapter that has an allocation of its own, by its number."""
    return VM_MINOR + 1 + number


def _classes(
    rate_bps: int,
    mtu: int,
    wanted: Sequence[tuple[int, str, int, int | None, float]],
    major: int = 1,
) -> tuple[TrafficClass, ...]:
    """Classes from (minor, name, guaranteed bps, allowed bps, weight)."""
    link = htb_rate_bytes_per_s(rate_bps, mtu)
    least_weight = min(weight for *_, weight in wanted)
    return tuple(
        TrafficClass(
            minor=minor,
            name=name,
            rate_bytes_per_s=max(htb_rate_bytes_per_s(guaranteed, mtu), link // _LEAST_PART, 1),
            ceil_bytes_per_s=link if allowed is None else htb_rate_bytes_per_s(allowed, mtu),
            quantum_bytes=round(LEAST_QUANTUM_BYTES * weight / least_weight),
            burst_bytes=burst_bytes(rate_bps if allowed is None else allowed),
            major=major,
        )
        for minor, name, guaranteed, allowed, weight in wanted
    )


def nioc_classes(
    nioc: Nioc, rate_bps: int, mtu: int, vms: Iterable[tuple[int, str, Allocation]] = ()
) -> tuple[TrafficClass, ...]:
    """A class for each system traffic type, and for VMs' adapters with allocations.

    Args:
        nioc: of the distributed switch.
        rate_bps: the uplink's rate.
        mtu: the uplink's MTU, for the derating.
        vms: (number, name, allocation) of the adapters.
    """
    types = _classes(
        rate_bps,
        mtu,
        [
            (
                type_minor(traffic),
                traffic,
                given.reservation_bps,
                _limit(given, rate_bps),
                given.shares,
            )
            for traffic, given in nioc.allocations
        ],
    )
    single = [
        (vm_minor(number), name, given.reservation_bps, _limit(given, rate_bps), given.shares)
        for number, name, given in vms
    ]
    if not single:
        return types
    return types + _classes(
        rate_bps, mtu, [(VM_MINOR, "other VMs", 0, None, _OTHERS_SHARES), *single], major=2
    )


def _limit(given: Allocation, rate_bps: int) -> int | None:
    if given.limit_bps is None or given.limit_bps >= rate_bps:
        return None
    return given.limit_bps


def nic_classes(shares: Sequence[NicShare], rate_bps: int, mtu: int) -> tuple[TrafficClass, ...]:
    """QoS on the NIC itself: guaranteed and maximal parts of the rate; excess by the guarantees.

    Traffic types without a part share one class that is guaranteed next to nothing.
    """
    named = {share.traffic: share for share in shares}
    wanted: list[tuple[int, str, int, int | None, float]] = []
    for traffic in SYSTEM_TRAFFIC:
        share = named.get(traffic)
        part = float(share.guaranteed) if share else 0.0
        most = None if share is None or share.most >= 1 else int(rate_bps * share.most)
        guaranteed = int(rate_bps * share.guaranteed) if share else 0
        wanted.append((type_minor(traffic), traffic, guaranteed, most, max(part, 0.01)))
    return _classes(rate_bps, mtu, wanted)


def queue_classes(queues: SwitchQueues, rate_bps: int, mtu: int) -> tuple[TrafficClass, ...]:
    """A class for each queue of a physical switch's port: its weight's part of the rate."""
    total = sum(weight for _, weight in queues.queues)
    return _classes(
        rate_bps,
        mtu,
        [
            (QUEUE_MINOR + n, _queue_name(queues, values), rate_bps * weight // total, None, weight)
            for n, (values, weight) in enumerate(queues.queues)
        ],
    )


def queue_minors(queues: SwitchQueues) -> tuple[int, ...]:
    """The class of each CoS (8) or DSCP (64); 0 where no queue names the value."""
    minors = [0] * (8 if queues.by == "cos" else 64)
    for n, (values, _) in enumerate(queues.queues):
        for value in values:
            minors[value] = QUEUE_MINOR + n
    return tuple(minors)


def _queue_name(queues: SwitchQueues, values: Sequence[int]) -> str:
    return f"{queues.by} {','.join(map(str, values))}"


def lending_rate_bytes_per_s(
    link_bytes_per_s: int, reserved: Sequence[int], used: Sequence[float]
) -> int:
    """The rate of an uplink's root class by which idle reservations are lent to nobody.

    HTB's leaves send within their own rate whatever the root says, and borrow above it only
    what the root has left of its rate. So the root is given what nobody reserved, and for each
    reservation as much as its owner uses of it: then those who borrow share the unreserved part
    alone. With one reservation idle and all others in use that is the link less the idle one.

    Args:
        link_bytes_per_s: the link's rate.
        reserved: each class's reservation, bytes per second.
        used: what each class sent lately, bytes per second.
    """
    free = link_bytes_per_s - sum(reserved)
    return round(free + sum(min(a, b) for a, b in zip(reserved, used, strict=True)))
