"""The delay line of a wire: a process that decides when each frame goes on, for want of netem.

It serves a wire's namespace, a bridge with two ports. What the ports receive the kernel holds
in two queues, one for each direction; the process is told when each frame came in and lets it
go when it is due. No payload is copied. The wire is dead while no process serves it: the queues
drop everything.

Delayed is all of IPv4 and IPv6, with one VLAN tag or none. Anything else passes at once: ARP,
RARP, LLDP, frames with two tags. So do frames while the rules aren't there yet.
"""

from __future__ import annotations

import gc
import json
import os
import select
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from testbed import prctl
from testbed.errors import TestbedError
from testbed.kernel import netns
from testbed.kernel.delay import rules as delay_rules
from testbed.kernel.delay.lateness import DirectionStatistics, Lateness, verdict
from testbed.kernel.delay.nfqueue import Queues
from testbed.kernel.delay.schedule import Lead, Schedule
from testbed.plan.policies import Delay

if TYPE_CHECKING:
    import socket

    from testbed.plan.policies import DelayLine

_DRAIN = 256  # frames taken in before the clock is looked at again
_MERGE_NS = 100_000  # at least half of Lead.MOST_NS; what is due so soon goes along
_GAP_NS = 200_000  # between two of them at least: it spares a third of the CPU time at 10 Gb/s
_COALESCE_NS = 500_000  # with a shorter delay every arrival wakes it
_PRIORITY = 1  # the lowest of the real-time priorities is above all that isn't real-time


def run(control: socket.socket, *, wire: DelayLine, wires_cpu: int | None = None) -> None:
    """Be the delay line of a wire until `control` is closed: for a process of its own.

    Says `{"event": "ready"}` once frames pass, or `{"error": {"type", "message"}}` and returns.
    Then answers commands, each with its "ask": see `_Line`.

    Args:
        control: JSON lines to and from whoever started it.
        wire: its namespace, ports and delays.
        wires_cpu: the CPU that handles what wires receive (`End.rps_cpu`), which it keeps off.
    """
    try:
        netns.enter(wire.netns)
        delay_rules.install(wire.ports, wire.netns)
        queues = Queues((0, 1))
    except TestbedError as error:
        _send(control, {"error": {"type": type(error).__name__, "message": str(error)}})
        return
    with queues:
        _be_punctual(wire.netns, wires_cpu)
        line = _Line(control, queues, wire.delays)
        _send(control, {"event": "ready"})
        line.serve()


def _be_punctual(name: str, wires_cpu: int | None) -> None:
    prctl.set_name(f"delay-{name}")
    prctl.wake_exactly()
    gc.disable()  # nothing here makes cycles
    if others := os.sched_getaffinity(0) - {wires_cpu}:
        os.sched_setaffinity(0, others)
    with suppress(OSError):  # without the privilege it is less punctual, and says how much
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")


class _Line:
    """The loop, and its commands.

    `delays`, with "delays", two of (delay_ns, jitter_ns): those of frames that come from now on.

    `report`: "directions", the figures of each (`DirectionStatistics.figures`), "trouble", why
    it is not the link that was asked for, or None, and "reading", to be given to a later report
    as "since": that one then counts what came after this one. Runs that overlap need this.
    Otherwise it counts from the start, or from the last report with "reset".
    """

    def __init__(self, control: socket.socket, queues: Queues, delays: tuple[Delay, Delay]) -> None:
        self._control = control
        self._queues = queues
        self._schedules = [Schedule(delay, seed) for seed, delay in enumerate(delays)]
        self._lateness = [Lateness(), Lateness()]
        self._lead = Lead()
        self._released_ns = 0
        self._words = bytearray()
        self._since = [DirectionStatistics(0, 0, Lateness()).to_json()] * 2

    def serve(self) -> None:
        """Take frames in, let them go, answer; until the other side closes the connection."""
        asked, woken_ns = False, None
        while True:
            now_ns = time.monotonic_ns()
            frames = self._queues.receive(_DRAIN)
            for queue, packet_id, arrived_ns in frames:
                self._schedules[queue].add(arrived_ns, packet_id)
            self._release(woken_ns)
            if asked and not self._answer():  # now that all has been taken in that came before
                return
            asked, woken_ns = self._sleep(now_ns if len(frames) < _DRAIN else 0)

    def _sleep(self, drained_ns: int) -> tuple[bool, int | None]:
        """Wait until there is something to do: whether commands came, and what due time woke it.

        Arrivals wake it only if they must, as the kernel notes when they were: what came in
        after `drained_ns` isn't due before the least delay has passed.
        """
        dues = [due for one in self._schedules if (due := one.next_due_ns) is not None]
        least_ns = min(one.least_delay_ns for one in self._schedules)
        watched: list[socket.socket | Queues] = [self._control, self._queues]
        until_ns = min(dues, default=None)
        if until_ns is not None and least_ns >= _COALESCE_NS:
            del watched[1]
            until_ns = min(until_ns, drained_ns + least_ns)
        wait_s = None
        if until_ns is not None:
            # A dense flow is let go in bursts, half of each early and half late.
            until_ns = max(until_ns, self._released_ns + _GAP_NS)
            wait_s = max(until_ns - self._lead.lead_ns - time.monotonic_ns(), 0) / 1e9
        # select and not poll: its timeout isn't rounded to milliseconds.
        ready = select.select(watched, (), (), wait_s)[0]
        slept = not ready and wait_s != 0 and until_ns in dues
        return self._control in ready, until_ns if slept else None

    def _release(self, woken_ns: int | None) -> None:
        for schedule, queue, lateness in zip(self._schedules, (0, 1), self._lateness, strict=True):
            due_ns, now_ns = schedule.next_due_ns, time.monotonic_ns()
            if due_ns is None:
                continue
            late_ns = now_ns - due_ns
            # Woken sooner than usual it waits awake, but no longer than it is worth.
            if late_ns >= -self._lead.lead_ns // 2:
                packet_id, dues = schedule.release(now_ns + _MERGE_NS)
                self._queues.accept(queue, packet_id)
                # The kernel carries them to the far end one by one within the call: a lone frame
                # leaves at its end, many on average at half of it.
                took_ns = time.monotonic_ns() - now_ns
                left_ns = now_ns + took_ns * (len(dues) + 1) // (2 * len(dues))
                late_ns = left_ns - due_ns
                self._released_ns = now_ns
                lateness.add(left_ns - due for due in dues)
            if due_ns == woken_ns:
                self._lead.learn(late_ns)

    def _answer(self) -> bool:
        """Read what has come on the control connection; False once it is closed."""
        part = self._control.recv(1 << 16)
        *lines, rest = (self._words + part).split(b"\n")
        self._words = bytearray(rest)
        for line in lines:
            message = json.loads(line)
            try:
                answer = self._carry_out(message)
            except (KeyError, TypeError, ValueError, OSError) as error:
                answer = {"error": {"type": type(error).__name__, "message": str(error)}}
            _send(self._control, {**answer, "ask": message.get("ask")})
        return bool(part)

    def _carry_out(self, message: dict[str, Any]) -> dict[str, Any]:
        match message["command"]:
            case "report":
                return self._report(message)
            case "delays":
                delays = [Delay(int(delay), int(jitter)) for delay, jitter in message["delays"]]
                for schedule, delay in zip(self._schedules, delays, strict=True):
                    schedule.delay = delay
                return {"delays": message["delays"]}
            case unknown:
                raise ValueError(f"a delay line knows no command {unknown!r}")

    def _report(self, message: dict[str, Any]) -> dict[str, Any]:
        status = self._queues.status()
        now = [
            DirectionStatistics(status[queue].queue_drops, status[queue].user_drops, lateness)
            for queue, lateness in enumerate(self._lateness)
        ]
        reading = [one.to_json() for one in now]
        since = message.get("since", self._since)
        if message.get("reset"):
            self._since = reading
        found = [
            one.since(DirectionStatistics.from_json(earlier))
            for one, earlier in zip(now, since, strict=True)
        ]
        troubles = [
            f"{way}: {trouble}"
            for way, one, schedule in zip(("there", "back"), found, self._schedules, strict=True)
            if (trouble := verdict(one, schedule.delay)) is not None
        ]
        return {
            "directions": [one.figures() for one in found],
            "trouble": "; ".join(troubles) or None,
            "reading": reading,
        }
