"""A link's round trip and loss, and TCP over it: what was asked for beside what is there."""

from __future__ import annotations

import math
import select
import socket
import statistics

from _network_lab import RUNS, Ends, Lab, lab, tcp_bps
from _row import Row, row, say

from testbed.lab.link_change import LinkChange
from testbed.measure.endpoint import socket_in
from testbed.measure.ping import PingTest
from testbed.measure.ping import measure as ping

RTTS_MS = (0.5, 1, 5, 10, 50, 100, 150)
TCP_RTTS_MS = {5: 2, 10: 2, 50: 4, 100: 4}
"""The round trips for TCP, and the first seconds of each run that are left out: TCP's start."""
LOSSES = (0.0, 0.001, 0.01, 0.05)
DATAGRAMS = 20_000
_DIRECT_OMIT_S = 2
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it
_BATCH = 64
_QUIET_S = 0.3

_LINK = ("tor-1", "tor-2")
_TOPOLOGY = """\
switches: {tor-1: {}, tor-2: {}}
links: [{between: [tor-1, tor-2], rate: RATE}]
distributed_switches:
  DSwitch: {uplinks: [uplink1], portgroups: {Untagged: {}, Tagged: {vlan: 20}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 2}
    memory: 1GiB
    nics: {vmnic0: {switch: "tor-[1-2]", uplink: DSwitch/uplink1}}
    vmks:
      vmk1: {portgroup: Untagged, ip: "192.168.10.[11-12]/24"}
      vmk2: {portgroup: Tagged, ip: "192.168.20.[11-12]/24"}
"""


def delays(runs: int | None) -> list[Row]:
    """Median round trips of an unloaded link, for untagged frames and in VLAN 20.

    What the hosts and switches take themselves is in them, and counts against the bar.
    """
    count = runs or RUNS
    rows = []
    with lab("delay", _TOPOLOGY.replace("RATE", "10Gbit")) as here:
        ways = {"untagged": here.ends("vmk1"), "VLAN 20": here.ends("vmk2")}
        for rtt_ms in RTTS_MS:
            _delay(here, rtt_ms)
            for way, ends in ways.items():
                name = f"RTT {rtt_ms:g} ms, {way}"
                values = [
                    here.undisturbed(name, lambda ends=ends: _rtt_ms(ends)) for _ in range(count)
                ]
                rows.append(_delay_row(name, rtt_ms, values))
        return rows + here.troubles("RTT")


def _delay_row(name: str, rtt_ms: float, values: list[float]) -> Row:
    value = statistics.median(values)
    allowed_ms = max(0.03 * rtt_ms, 0.15)
    return row(
        name, value, "ms", len(values), peer=("asked", rtt_ms), ratio=value / rtt_ms,
        bar=f"± {allowed_ms:g}", met=abs(value - rtt_ms) <= allowed_ms,
    )  # fmt: skip


def _rtt_ms(ends: Ends, count: int = 100) -> float:
    return ping(*ends, PingTest(count=count, interval_ns=10_000_000)).median_ns / 1e6


def _delay(here: Lab, rtt_ms: float) -> None:
    here.change(LinkChange(_LINK, delay_ns=round(rtt_ms * 1e6 / 2)))


def delayed_throughput(runs: int | None) -> list[Row]:
    """TCP over 1 Gb/s with a round trip, beside the same link without one, from the same rounds."""
    count = runs or RUNS
    found: dict[int, list[float]] = {rtt_ms: [] for rtt_ms in (0, *TCP_RTTS_MS)}
    with lab("tcp", _TOPOLOGY.replace("RATE", "1Gbit")) as here:
        ends = here.ends("vmk1")
        for _ in range(count):
            for rtt_ms, values in found.items():
                _delay(here, rtt_ms)
                values.append(_delayed_bps(here, ends, rtt_ms))
        rows = []
        direct = statistics.median(found.pop(0))
        for rtt_ms, values in found.items():
            value = statistics.median(values)
            ratio = value / direct
            rows.append(
                row(
                    f"TCP over 1 Gb/s, RTT {rtt_ms} ms (after {TCP_RTTS_MS[rtt_ms]} s)",
                    value / 1e9,
                    "Gbit/s",
                    count,
                    peer=("no delay", direct / 1e9),
                    ratio=ratio,
                    bar=">= 0.99",
                    met=ratio >= 0.99,
                )
            )
        return rows + here.troubles("TCP")


def _delayed_bps(here: Lab, ends: Ends, rtt_ms: int) -> float:
    what = f"TCP over 1 Gb/s, RTT {rtt_ms} ms"
    omit_s = TCP_RTTS_MS.get(rtt_ms, _DIRECT_OMIT_S)
    value = here.undisturbed(what, lambda: tcp_bps(ends, 3, omit_s))
    say(f"{what}: {value / 1e9:.4g} Gbit/s")
    return value


def losses(runs: int | None) -> list[Row]:
    """UDP datagrams sent one way, and which of them a link by its loss took."""
    count = (runs or 1) * DATAGRAMS
    rows = []
    with lab("loss", _TOPOLOGY.replace("RATE", "10Gbit")) as here:
        ends = here.ends("vmk1")
        for loss in LOSSES:
            here.change(LinkChange(_LINK, loss=loss))
            lost = count - _arrivals(ends, count)
            least, most = binomial_interval(count, loss, 0.99)
            rows.append(
                row(
                    f"loss {loss:.1%} of {count} datagrams",
                    lost,
                    "lost",
                    runs or 1,
                    peer=("expected", count * loss),
                    ratio=lost / (count * loss) if loss else None,
                    bar=f"{least}-{most} (99 %)",
                    met=least <= lost <= most,
                )
            )
    return rows


def _arrivals(ends: Ends, count: int) -> int:
    """How many of `count` datagrams arrive: in small batches, that no queue but the link's lose."""
    source, destination = ends
    kind = socket.AF_INET, socket.SOCK_DGRAM, 0
    arrived = set()
    with (
        socket_in(destination.netns_path, *kind) as receiver,
        socket_in(source.netns_path, *kind) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        receiver.bind((destination.address, 0))
        sender.bind((source.address, 0))
        sender.connect(receiver.getsockname())
        for number in range(count):
            sender.send(number.to_bytes(4, "big"))
            last = number == count - 1
            if number % _BATCH == _BATCH - 1 or last:
                while select.select([receiver], [], [], _QUIET_S if last else 0.0005)[0]:
                    arrived.add(receiver.recv(4))
    return len(arrived)


def binomial_interval(trials: int, share: float, confidence: float) -> tuple[int, int]:
    """The least and most successes, each passed with a chance of half the rest at most."""
    if share == 0:
        return 0, 0
    tail = (1 - confidence) / 2
    below, least = 0.0, -1
    for successes in range(trials + 1):
        chances = math.lgamma(trials + 1) - math.lgamma(successes + 1)
        chances -= math.lgamma(trials - successes + 1)
        chances += successes * math.log(share) + (trials - successes) * math.log1p(-share)
        below += math.exp(chances)
        if least < 0 and below > tail:
            least = successes
        if below >= 1 - tail:
            return least, successes
    return least, trials
