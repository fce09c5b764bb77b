"""The network: rates, delays, loss, shares, VLANs, failover; theory beside measurement.

Each part has labs of its own, brought up by the lab's own ways and changed by those of
`testbed link`. TCP is one stream, cubic, MTU 1500, as iperf3's receiver counted it after the
first second (TCP over delays: as named in the row). Goodput is Ethernet's with preamble, gap and
headers: 941.5 Mb/s of 1 Gb/s. Values are medians. A run that the machine disturbed is repeated
up to three times, and that is counted: a delay line was late, or the CPUs were never idle.
Losses are by chance: one row in a hundred is outside its 99 % interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from _network_failover import failover
from _network_links import delayed_throughput, delays, losses
from _network_rates import cost, rates
from _network_shares import shares

if TYPE_CHECKING:
    from collections.abc import Callable

    from _row import Row

PARTS: dict[str, Callable[[int | None], list[Row]]] = {
    "rates": rates,
    "delays": delays,
    "throughput": delayed_throughput,
    "loss": losses,
    "shares": shares,
    "cost": cost,
    "failover": failover,
}


def run(runs: int | None = None) -> list[Row]:
    """All parts, one after the other."""
    return [row for part in PARTS.values() for row in part(runs)]
