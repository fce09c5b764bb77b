"""A migration's specification sent from host to host, and heartbeats while it goes on."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError, MigrationError
from testbed.lab.conversation import Conversation
from testbed.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from testbed.lab.adapter_paths import AdapterPath
    from testbed.lab.agents import Agents
    from testbed.lab.lines import Message
    from testbed.profiles import Profile

_OVER_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class Ends:
    """Both hosts of a migration: their names and namespaces, and what traffic costs each.

    `path` is between their management vmks; None if one of them has none. Costs as
    `management.Costs.of`.
    """

    hosts: tuple[str, str]
    netns: tuple[str, str]
    path: AdapterPath | None
    costs: tuple[Message | None, Message | None]


@dataclass(slots=True)
class Delivered:
    """What came of it, for the result's notices."""

    notices: list[str] = field(default_factory=list)


@asynccontextmanager
async def delivered(
    agents: Agents, ends: Ends, migration_id: int, specification: Message, profile: Profile
) -> AsyncIterator[Delivered]:
    """Send the specification before the block, and heartbeats during it.

    Without management traffic in the profile, or a way for it, nothing is sent; the latter is a
    notice.

    Raises:
        MigrationError: the specification did not arrive.
        LabError: an agent did not start.
    """
    found = Delivered()
    if not profile.management_bytes:
        yield found
        return
    if ends.path is None:
        found.notices.append(
            f"no management traffic: {' and '.join(ends.hosts)} have no vmks with the management"
            " service that reach each other"
        )
        yield found
        return
    for host, where in zip(ends.hosts, ends.netns, strict=True):
        await agents.of(host, where)
    common: dict[str, Any] = {
        "id": migration_id,
        "source_address": ends.path.source_address,
        "destination_address": ends.path.destination_address,
    }
    with ExitStack() as stack:
        here, there = (stack.enter_context(Conversation(where)) for where in ends.netns)
        try:
            await there.ask("expect", {**common, "costs": ends.costs[1]})
            said = await here.ask(
                "deliver",
                {
                    **common,
                    "costs": ends.costs[0],
                    "specification": specification,
                    "bytes": profile.management_bytes,
                    "heartbeat_bytes": profile.heartbeat_bytes,
                    "interval_ns": profile.heartbeat_interval_ns,
                    "timeout_ns": profile.timeout_ns,
                },
            )
        except LabError as error:
            path, (source, destination) = ends.path, ends.hosts
            raise MigrationError(
                f"from {source}/{path.source_vmk} to {destination}/{path.destination_vmk} of the"
                f" management network: {error}; 'testbed vmkping {source}"
                f" {path.destination_address} -I {path.source_vmk}' tries it"
            ) from error
        yield found
        size, took = format_size(profile.management_bytes), format_duration(said["took_ns"])
        words = f"management traffic: a specification of {size} took {took}"
        try:
            async with asyncio.timeout(_OVER_DEADLINE_S):
                answered = (await there.over())["answered"]
            words += f"; heartbeats answered: {answered}"
        except (LabError, OSError, TimeoutError) as error:
            words += f"; its heartbeats failed: {error}"
        found.notices.append(words)
