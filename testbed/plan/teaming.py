"""Which uplink a port leaves by: pure decisions, on paper and at a failover alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from testbed.topology.policy import Teaming


def in_use(teaming: Teaming, alive: Collection[str]) -> tuple[str, ...]:
    """The uplinks that carry traffic now: each failed active one is replaced by a standby.

    With the policy `explicit` it is one, the first alive in the order active, standby.
    """
    if teaming.policy == "explicit":
        return tuple(nic for nic in (*teaming.active, *teaming.standby) if nic in alive)[:1]
    return tuple(nic for nic in _places(teaming, alive) if nic is not None)


def _places(teaming: Teaming, alive: Collection[str]) -> list[str | None]:
    """Who stands in each active uplink's place: itself, a standby, or nobody."""
    spare = iter([nic for nic in teaming.standby if nic in alive])
    active = teaming.active or (None,)
    return [nic if nic in alive else next(spare, None) for nic in active]


def choose(
    teaming: Teaming, port: int, mac: str, alive: Collection[str], present: str | None = None
) -> str | None:
    """The uplink that a port is pinned to; None when the whole team is down.

    Args:
        teaming: the port group's.
        port: the port's number on the switch (policy `originating_port`: number modulo team).
        mac: its adapter's address (policy `mac_hash`: the last byte modulo team).
        alive: the uplinks whose link is up.
        present: the one that it is pinned to now; without failback it stays there as long as
            that is alive.
    """
    known = present is not None and present in (*teaming.active, *teaming.standby)
    if known and present in alive and not teaming.failback:
        return present
    team = in_use(teaming, alive)
    if not team:
        return None
    if teaming.policy == "explicit":
        return team[0]
    number = int(mac.rsplit(":", 1)[-1], 16) if teaming.policy == "mac_hash" else port
    # A port whose own uplink is alive doesn't move because another port's has failed; those of a
    # failed one go together to its standby, or are spread over all that are left.
    places = _places(teaming, alive)
    return places[number % len(places)] or team[number // len(places) % len(team)]
