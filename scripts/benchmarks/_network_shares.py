"""Bandwidth on an uplink of 1 Gb/s: shares, reservations, limits, by the vmks' services."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from _network_lab import MTU, RUNS, Lab, lab
from _row import Row, row

from testbed.measure.iperf import measure as iperf
from testbed.measure.iperf_result import IperfTest
from testbed.measure.theory import ETHERNET_HEADER_BYTES, tcp_goodput_bps, tcp_payload_bytes
from testbed.plan.steps import Netns

RATE_BPS = 10**9
_DURATION_S = 5
_BEGIN_S, _COUNTED_S = 1.5, 2.5  # before: iperf3 starts, and TCP finds its rate
_SERVICES = {"vmotion": "vmk1", "management": "vmk2", "nfs": "vmk3", "vsan": "vmk4"}
_GROUPS = "portgroups: {vmotion: {}, management: {}, nfs: {}, vsan: {}}"
_RESERVED = "vmotion: {reservation: 300Mbit}, management: {reservation: 200Mbit}"
_RESERVED += ", nfs: {reservation: 250Mbit}"


@dataclass(frozen=True, slots=True)
class _Case:
    """What is set, and the percent of the link for each service that sends, or for their sum."""

    name: str
    percents: dict[str, float]
    nioc: str = ""
    qos: str = ""
    together: float | None = None


CASES = (
    _Case(
        "shares 100:50:50",
        {"vmotion": 50, "management": 25, "nfs": 25},
        nioc="vmotion: {shares: 100}, management: {shares: 50}, nfs: {shares: 50}",
    ),
    _Case(
        "shares 2:1:1:1",
        {"vmotion": 40, "management": 20, "nfs": 20, "vsan": 20},
        nioc="vmotion: {shares: 2}, management: {shares: 1}, nfs: {shares: 1}, vsan: {shares: 1}",
    ),
    _Case(
        "guaranteed 30/40/15/15 %",
        {"vmotion": 30, "management": 40, "nfs": 15, "vsan": 15},
        qos="vmotion: {guarantee: 30%}, management: {guarantee: 40%},"
        " nfs: {guarantee: 15%}, vsan: {guarantee: 15%}",
    ),
    _Case("limit 20 %", {"vmotion": 20, "nfs": 80}, nioc="vmotion: {limit: 200Mbit}"),
    _Case(
        "idle 30 % lost",
        {"management": 0, "nfs": 0},
        nioc=f"{_RESERVED}, idle_reservations: lost",
        together=70,
    ),
    _Case(
        "idle 30 % lent",
        {"management": 0, "nfs": 0},
        nioc=f"{_RESERVED}, idle_reservations: lent",
        together=100,
    ),
)


def shares(runs: int | None) -> list[Row]:
    """Each case in a lab of its own; what a service gets, in percent of the link's goodput."""
    count = runs or RUNS
    rows = []
    for number, case in enumerate(CASES):
        with lab(f"nioc{number}", _topology(case)) as here:
            found = [_percents(here, [*case.percents]) for _ in range(count)]
        got = {one: statistics.median(run[one] for run in found) for one in case.percents}
        if case.together is None:
            for service, wanted in case.percents.items():
                rows.append(_point(f"{case.name}: {service}", got[service], wanted, count))
        else:
            total = statistics.median(sum(run.values()) for run in found)
            name = f"{case.name}: {' + '.join(case.percents)}"
            rows.append(_point(name, total, case.together, count))
    return rows


def _point(name: str, value: float, wanted: float, runs: int) -> Row:
    return row(
        name, value, "% of link", runs, peer=("theory", wanted),
        ratio=value / wanted, bar="± 1 point", met=abs(value - wanted) <= 1,
    )  # fmt: skip


def _topology(case: _Case) -> str:
    switch = "uplinks: [uplink1], " + (f"nioc: {{{case.nioc}}}, " if case.nioc else "") + _GROUPS
    nic = "switch: tor, rate: 1Gbit, uplink: DSwitch/uplink1"
    nic += f", qos: {{{case.qos}}}" if case.qos else ""
    vmks = ", ".join(
        f'{vmk}: {{portgroup: {service}, ip: "192.168.{net}.[11-12]/24", services: [{service}]}}'
        for net, (service, vmk) in enumerate(_SERVICES.items(), 10)
    )
    return f"""\
switches: {{tor: {{}}}}
distributed_switches: {{DSwitch: {{{switch}}}}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 2}}
    memory: 1GiB
    nics: {{vmnic0: {{{nic}}}}}
    vmks: {{{vmks}}}
"""


def _percents(here: Lab, services: list[str]) -> dict[str, float]:
    """All services send at once, a TCP stream each; what arrives of each while all of them do.

    It is counted at the receiving adapters: senders count what still waits in their buffers.
    """
    pairs = [here.ends(_SERVICES[service]) for service in services]
    test = IperfTest(duration_s=_DURATION_S)
    with ThreadPoolExecutor(len(pairs)) as pool:
        running = [pool.submit(iperf, *ends, test) for ends in pairs]
        time.sleep(_BEGIN_S)
        began_ns, before = _received(here)
        time.sleep(_COUNTED_S)
        ended_ns, after = _received(here)
        for one in running:
            one.result()
    link_bytes = tcp_goodput_bps(RATE_BPS, MTU) / 8e9 * (ended_ns - began_ns)
    return {
        service: 100 * (after[_SERVICES[service]] - before[_SERVICES[service]]) / link_bytes
        for service in services
    }


def _received(here: Lab) -> tuple[float, dict[str, int]]:
    """The time, and the TCP payload that each adapter of esx02 has received until then.

    An adapter counts a train of segments as one packet, with its headers once.
    """
    name = next(s.name for s in here.plan.steps if isinstance(s, Netns) and s.node == "esx02")
    asked_ns = time.monotonic_ns()
    text = subprocess.check_output(["ip", "-n", name, "-json", "-stats", "link"], text=True)
    found = {link["ifname"]: link["stats64"]["rx"] for link in json.loads(text)}
    at_ns = (asked_ns + time.monotonic_ns()) / 2
    headers = ETHERNET_HEADER_BYTES + MTU - tcp_payload_bytes(MTU)
    return at_ns, {
        vmk: found[vmk]["bytes"] - headers * found[vmk]["packets"] for vmk in _SERVICES.values()
    }
