"""The children that feel for one VM: its probe, and clients beside it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import LabError

if TYPE_CHECKING:
    from testbed.guest.workloads import Workload
    from testbed.lab.child import Child
    from testbed.lab.lines import Message

REPORT_DEADLINE_S = 60.0


@dataclass(slots=True)
class Watch:
    """The children that watch one VM; `troubles` are those that could not, or not to the end."""

    vm: str
    workloads: tuple[Workload, ...] = ()
    client: str = ""
    probe: Child | None = None
    clients: list[Child] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def follow(self, *memories: tuple[int, int]) -> None:
        """The VM is, or will be, in one of these memories, (pid, descriptor); no answer comes."""
        if self.probe is not None:
            self.probe.tell({"command": "follow", "memories": memories})

    async def report(self, from_ns: int, until_ns: int, workloads: tuple[Workload, ...]) -> Message:
        """A `report.felt.Felt` as JSON, of a window of CLOCK_MONOTONIC; ends the clients' work.

        Args:
            from_ns: when what was done to the VM began.
            until_ns: when it was over.
            workloads: what the VM does now.
        """
        if workloads != self.workloads:
            self.troubles.append("its workloads were switched meanwhile: figures mix them")
        asked = {"command": "report", "from_ns": from_ns, "until_ns": until_ns}
        felt: Message = {"guest": None, "series": [], "client": self.client, "sessions": []}
        children = [child for child in (self.probe, *self.clients) if child is not None]
        for said in await asyncio.gather(*(_asked(child, asked) for child in children)):
            if "trouble" in said:
                self.troubles.append(said["trouble"])
            elif "session" in said:
                felt["sessions"].append(said["session"])
            else:
                felt |= said
        return felt | {"troubles": self.troubles}


async def _asked(child: Child, message: Message) -> Message:
    try:
        return await child.call(message, REPORT_DEADLINE_S)
    except LabError as error:
        return {"trouble": str(error)}
