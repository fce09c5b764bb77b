"""The links of a lab that have latency: their delay lines, and what they did to a measurement."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from testbed.errors import LabError
from testbed.kernel.delay import line as delay_line
from testbed.kernel.delay.lateness import DirectionStatistics, verdict
from testbed.kernel.observation import observe
from testbed.lab.child import Child, checked
from testbed.lab.client import request
from testbed.plan.plan import kernel_steps
from testbed.plan.policies import Delay, DelayLine, Netem
from testbed.report.result import WireDirection, WireReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.lab.directory import LabDirectory
    from testbed.lab.lines import Message
    from testbed.plan.plan import Plan

START_DEADLINE_S = 30.0
ANSWER_DEADLINE_S = 5.0
T = TypeVar("T")
LINE = "delay line on NFQUEUE"


class Wires:
    """One process for each delayed wire, by the wire's namespace.

    Args:
        wires_cpu: the CPU that handles what the lab's wires receive; the lines keep off it.
    """

    def __init__(self, wires_cpu: int) -> None:
        self._wires_cpu = wires_cpu
        self._lines: dict[str, tuple[DelayLine, Child]] = {}

    async def start(self, step: DelayLine) -> bool:
        """Start a wire's line; False if it runs already. One that has died is started again.

        Raises:
            LabError: it did not start.
        """
        there = self._lines.get(step.netns)
        if there is not None and there[1].trouble is None:
            return False
        if there is not None:
            del self._lines[step.netns]
            await there[1].end()
        line = await Child.spawn(partial(delay_line.run, wire=step, wires_cpu=self._wires_cpu))
        try:
            checked(await line.receive(START_DEADLINE_S))
        except BaseException:
            await line.end()
            raise
        self._lines[step.netns] = (step, line)
        return True

    async def alter(self, step: DelayLine) -> None:
        """Give a running line other delays.

        Raises:
            LabError: it has died, or does not answer.
        """
        _, line = self._lines[step.netns]
        delays = [[delay.delay_ns, delay.jitter_ns] for delay in step.delays]
        await line.call({"command": "delays", "delays": delays}, ANSWER_DEADLINE_S)
        self._lines[step.netns] = (step, line)

    async def stop(self, step: DelayLine) -> None:
        """End a wire's line; from then on nothing passes the wire."""
        there = self._lines.pop(step.netns, None)
        if there is not None:
            await there[1].end()

    async def stop_all(self) -> None:
        """End every line."""
        while self._lines:
            _, (_, line) = self._lines.popitem()
            await line.end()

    def troubles(self) -> list[str]:
        """Lines that have died, in words."""
        return [
            f"the delay line of {step.link} has died: nothing passes this link ({line.trouble})"
            for step, line in self._lines.values()
            if line.trouble is not None
        ]

    async def reading(self, plan: Plan) -> Message:
        """All counters of the wires with latency now, by the wire's link.

        Args:
            plan: the lab's, for the wires that netem delays.
        """
        lines = list(self._lines.values())
        found = await asyncio.gather(*(_read(step, line) for step, line in lines))
        return {step.link: said for (step, _), said in zip(lines, found, strict=True)} | _netems(
            plan
        )


async def _read(step: DelayLine, line: Child) -> Message:
    common: Message = {
        "mechanism": LINE,
        "delays": [[delay.delay_ns, delay.jitter_ns] for delay in step.delays],
    }
    try:
        if line.trouble is not None:
            raise LabError(line.trouble)
        answer = await line.call({"command": "report"}, ANSWER_DEADLINE_S)
    except LabError as error:
        return {**common, "directions": None, "trouble": f"its delay line has died: {error}"}
    return {**common, "directions": answer["reading"], "trouble": None}


def _netems(plan: Plan) -> Message:
    """The same for wires with netem, whose port towards the second end carries `there`."""
    steps = [step for step in plan.steps if isinstance(step, Netem)]
    if not steps:
        return {}
    found: Message = {}
    seen = observe(kernel_steps(plan.steps))
    for step in steps:
        link = step.netns.rpartition(".")[2].replace("+", " - ")
        one = found.setdefault(
            link, {"mechanism": "netem", "delays": [], "directions": [], "trouble": None}
        )
        at = seen[f"link {step.netns}/{step.dev}"]
        # The first end's port sends what comes from the second: `back` is listed last.
        one["delays"].insert(0, [step.delay_ns, step.jitter_ns])
        frames = at.link.counters.tx_packets if at.link.counters else 0
        dropped = at.qdisc.dropped if at.qdisc else 0
        one["directions"].insert(0, {"frames": frames, "dropped": dropped})
    return found


def over_wires(
    directory: LabDirectory, measure: Callable[[], T]
) -> tuple[T, tuple[WireReport, ...]]:
    """Measure something in a running lab, and what its links with latency did meanwhile.

    Raises:
        LabError: the lab's supervisor does not answer; and whatever `measure` raises.
    """
    ask = {"command": "wires"}
    before = request(directory, ask, timeout_s=ANSWER_DEADLINE_S)
    result = measure()
    return result, reports(before, request(directory, ask, timeout_s=ANSWER_DEADLINE_S))


def reports(before: Message, after: Message) -> tuple[WireReport, ...]:
    """What happened on the wires between two readings."""
    return tuple(_report(link, before.get(link), said) for link, said in after.items())


def _report(link: str, before: Message | None, after: Message) -> WireReport:
    trouble = after["trouble"]
    directions: list[WireDirection] = []
    if before is None or before["directions"] is None or after["directions"] is None:
        trouble = trouble or "its delay line was started meanwhile"
        return WireReport(link, after["mechanism"], (), trouble)
    if before["delays"] != after["delays"]:
        trouble = trouble or "its latency was changed meanwhile"
    for (delay_ns, jitter_ns), old, new in zip(
        after["delays"], before["directions"], after["directions"], strict=True
    ):
        if after["mechanism"] != LINE:
            frames, dropped = (new[key] - old[key] for key in ("frames", "dropped"))
            directions.append(WireDirection(delay_ns, jitter_ns, frames, dropped))
            continue
        seen = DirectionStatistics.from_json(new).since(DirectionStatistics.from_json(old))
        trouble = trouble or verdict(seen, Delay(delay_ns, jitter_ns))
        directions.append(
            WireDirection(
                delay_ns,
                jitter_ns,
                seen.frames,
                seen.queue_drops + seen.user_drops,
                seen.p50_ns,
                seen.p99_ns,
                seen.max_ns,
            )
        )
    return WireReport(link, after["mechanism"], tuple(directions), trouble)
