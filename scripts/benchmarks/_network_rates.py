"""TCP over an uplink's rates, over none, and over none with a VLAN and marks."""

from __future__ import annotations

import statistics

from _network_lab import MTU, RUNS, Ends, Lab, lab, tcp_bps
from _row import Row, row

from testbed.lab.link_change import LinkChange
from testbed.measure.theory import tcp_goodput_bps

RATES_BPS = (10**8, 10**9, 10**10)
HIGH_RATES_BPS = (25 * 10**9, 40 * 10**9, 100 * 10**9)
_PAIRS = 7
_TOPOLOGY = """\
switches: {tor: {}}
distributed_switches:
  DSwitch:
    uplinks: [uplink1]
    portgroups: {Plain: {}, Marked: {vlan: 20, marking: {cos: 4, dscp: 26}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 2}
    memory: 1GiB
    nics: {vmnic0: {switch: tor, RATE uplink: DSwitch/uplink1}}
    vmks:
      vmk1: {portgroup: Plain, ip: "192.168.10.[11-12]/24"}
      vmk2: {portgroup: Marked, ip: "192.168.20.[11-12]/24"}
"""
_FREE = _TOPOLOGY.replace("RATE", "")


def rates(runs: int | None) -> list[Row]:
    """Up to 10 Gb/s beside Ethernet's goodput; above, beside the same path without a rate.

    There runs with a rate and without alternate, as a busy machine slows both of a pair.
    """
    count = runs or RUNS
    with lab("free", _FREE) as free, lab("rate", _TOPOLOGY.replace("RATE", "rate: 1Gbit,")) as here:
        free_ends, ends = free.ends("vmk1"), here.ends("vmk1")
        rows = []
        for rate_bps in (*RATES_BPS, *HIGH_RATES_BPS):
            for host in ("esx01", "esx02"):
                here.change(LinkChange((f"{host}/vmnic0", "tor"), rate_bps=rate_bps))
            if rate_bps in RATES_BPS:
                rows.append(_exact(here, rate_bps, ends, count))
            else:
                rows.append(_fast(rate_bps, ends, free_ends, count))
        return rows + here.troubles("TCP over rates")


def _exact(here: Lab, rate_bps: int, ends: Ends, count: int) -> Row:
    goodput = tcp_goodput_bps(rate_bps, MTU)
    name = f"TCP over {rate_bps / 1e9:g} Gb/s"
    values = [here.undisturbed(name, lambda: tcp_bps(ends)) for _ in range(count)]
    value = statistics.median(values)
    ratio = value / goodput
    return row(
        name, value / 1e9, "Gbit/s", count, peer=("goodput", goodput / 1e9),
        ratio=ratio, bar="within 1 %", met=abs(ratio - 1) <= 0.01,
    )  # fmt: skip


def _fast(rate_bps: int, ends: Ends, free_ends: Ends, count: int) -> Row:
    pairs = [(tcp_bps(ends, 1), tcp_bps(free_ends, 1)) for _ in range(count)]
    value, unshaped = (statistics.median(one) for one in zip(*pairs, strict=True))
    return row(
        f"TCP over {rate_bps / 1e9:g} Gb/s (goodput {tcp_goodput_bps(rate_bps, MTU) / 1e9:.1f})",
        value / 1e9, "Gbit/s", count, peer=("no rate", unshaped / 1e9),
        ratio=statistics.median(a / b for a, b in pairs),
    )  # fmt: skip


def cost(runs: int | None) -> list[Row]:
    """TCP without a rate: a port group with VLAN, CoS and DSCP beside a plain one, alternating."""
    count = runs or _PAIRS
    plain: list[float] = []
    marked: list[float] = []
    with lab("cost", _FREE) as here:
        order = [(here.ends("vmk1"), plain), (here.ends("vmk2"), marked)]
        for number in range(count):
            for ends, values in order if number % 2 else reversed(order):
                values.append(tcp_bps(ends, 1))
    ratio = statistics.median(a / b for a, b in zip(marked, plain, strict=True))
    value, peer_value = statistics.median(marked) / 1e9, statistics.median(plain) / 1e9
    found = row(
        "TCP, no rate: VLAN 20, CoS 4, DSCP 26", value, "Gbit/s", count,
        peer=("plain port group", peer_value), ratio=ratio, bar="> 0.95", met=ratio > 0.95,
    )  # fmt: skip
    return [found]
