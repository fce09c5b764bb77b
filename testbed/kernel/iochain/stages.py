"""VLANs, security and teaming as instructions: the stages of ports and of virtual switches.

A stage lets a frame go on by falling through, and drops it by a jump to the label it is given.
MAC addresses and the devices of mirrors are symbols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.kernel.iochain.assembler import (
    R0,
    R1,
    R2,
    R3,
    R10,
    Label,
    Line,
    call,
    compute,
    jump,
    jump_if,
    load,
    set_cell,
    set_map,
    set_symbol,
    set_wide,
    store,
)
from testbed.kernel.iochain.cells import INCOMING, UPLINK_AT
from testbed.kernel.iochain.headers import (
    CLONE_REDIRECT,
    COS_SHIFT,
    DESTINATION_AT,
    FRAME,
    MAC_BYTES,
    MAP_LOOKUP,
    MARK,
    SCRATCH,
    SOURCE_AT,
    VID_MASK,
    VLAN_POP,
    VLAN_PRESENT,
    VLAN_TCI,
    in_ranges,
    invoke,
    push_tag,
    read,
)
from testbed.plan.stages import ARRIVED, CLASS_SHIFT, TRAFFIC_SHIFT, UPLINK_MASK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.kernel.iochain.headers import Scope
    from testbed.plan import stages

PORT, SWITCH = "port map", "switch map"  # no device has a blank in its name


def tag(stage: stages.Tag, scope: Scope) -> Iterator[Line]:
    """Drop what has a tag, push one on the rest: `bpf_skb_vlan_push`."""
    yield load(4, R1, FRAME, VLAN_PRESENT)
    yield jump_if(R1, "!=", 0, scope.drop)
    if stage.vid:
        yield from push_tag(stage.vid | stage.cos << COS_SHIFT)
        yield jump_if(R0, "!=", 0, scope.drop)


def untag(stage: stages.Untag, scope: Scope) -> Iterator[Line]:
    """Drop what isn't of the VLAN, take the tag off the rest: `bpf_skb_vlan_pop`."""
    yield load(4, R1, FRAME, VLAN_PRESENT)
    if not stage.vid:
        yield jump_if(R1, "!=", 0, scope.drop)
        return
    yield jump_if(R1, "==", 0, scope.drop)
    yield from _vid()
    yield jump_if(R1, "!=", stage.vid, scope.drop)
    yield from invoke(VLAN_POP)
    yield jump_if(R0, "!=", 0, scope.drop)


def carry(stage: stages.Carry, scope: Scope) -> Iterator[Line]:
    """Compare the tag's VID with the allowed ranges."""
    carried = scope.labels.new("carried")
    yield load(4, R1, FRAME, VLAN_PRESENT)
    yield jump_if(R1, "==", 0, carried if stage.untagged else scope.drop)
    yield from _vid()
    yield from in_ranges(stage.vids, carried, scope.labels)
    yield jump(scope.drop)
    yield Label(carried)


def forged_transmits(stage: stages.ForgedTransmits, scope: Scope) -> Iterator[Line]:
    """Compare the source address: `bpf_skb_load_bytes`."""
    yield from _read_mac(SOURCE_AT)
    yield set_wide(R2, stage.mac)
    yield jump_if(R1, "!=", R2, scope.drop)


def mac_changes(stage: stages.MacChanges, scope: Scope) -> Iterator[Line]:
    """Compare a unicast destination: `bpf_skb_load_bytes`."""
    meant = scope.labels.new("meant")
    yield from _read_mac(DESTINATION_AT)
    yield jump_if(R1, "&", 1, meant)  # the group bit: multicast and broadcast
    yield set_wide(R2, stage.mac)
    yield jump_if(R1, "!=", R2, scope.drop)
    yield Label(meant)


def mirror(stage: stages.Mirror, scope: Scope) -> Iterator[Line]:
    """Send a copy out of another port, through its chain: `bpf_clone_redirect`.

    This goes past the bridge, which closes ports: one whose address isn't listed is closed.
    """
    done = scope.labels.new("mirrored")
    yield from _read_mac(DESTINATION_AT)
    yield jump_if(R1, "&", 1, done)  # the bridge floods these anyway
    yield set_wide(R2, stage.mac)
    yield jump_if(R1, "==", R2, done)
    yield store(8, R10, SCRATCH, R2)
    yield from _look_up()
    yield jump_if(R0, "==", 0, done)
    yield compute(R1, "=", FRAME)
    yield set_symbol(R2, stage.dev)
    yield compute(R3, "=", 0)
    yield call(CLONE_REDIRECT)
    yield Label(done)


def classify(stage: stages.Classify, _: Scope) -> Iterator[Line]:
    """Write the mark anew: the traffic type and the class."""
    yield set_wide(R1, stage.traffic << TRAFFIC_SHIFT | stage.minor << CLASS_SHIFT)
    yield store(4, FRAME, MARK, R1)


def team(_: stages.Team, scope: Scope) -> Iterator[Line]:
    """In: note the uplink; out: compare it. The one that the port is pinned to is cell 0."""
    return _team_in() if scope.direction == INCOMING else _team_out(scope)


def _team_in() -> Iterator[Line]:
    yield from _pinned()
    yield load(4, R1, FRAME, MARK)
    yield compute(R1, "|=", R2)  # the program has cleared the mark at its start
    yield store(4, FRAME, MARK, R1)


def _team_out(scope: Scope) -> Iterator[Line]:
    local = scope.labels.new("local")
    yield load(4, R1, FRAME, MARK)
    yield compute(R3, "=", R1)
    yield compute(R3, "&=", ARRIVED)
    yield jump_if(R3, "==", 0, local)
    yield from _pinned()
    yield load(4, R1, FRAME, MARK)
    yield compute(R1, "&=", UPLINK_MASK)
    yield jump_if(R1, "!=", R2, scope.drop)
    yield Label(local)


def arrive(stage: stages.Arrive, scope: Scope) -> Iterator[Line]:
    """Look for the source among the switch's own addresses: `bpf_map_lookup_elem`."""
    if stage.reflections:
        yield from _read_mac(SOURCE_AT)
        yield from _look_up()
        yield jump_if(R0, "!=", 0, scope.drop)
    yield compute(R1, "=", ARRIVED | stage.uplink)
    yield store(4, FRAME, MARK, R1)


def leave_by(stage: stages.Leave, scope: Scope) -> Iterator[Line]:
    """Compare the mark's uplink; what has arrived from outside never leaves again."""
    yield load(4, R1, FRAME, MARK)
    yield compute(R1, "&=", UPLINK_MASK | ARRIVED)
    yield jump_if(R1, "!=", stage.uplink, scope.drop)


def _vid() -> Iterator[Line]:
    yield load(4, R1, FRAME, VLAN_TCI)
    yield compute(R1, "&=", VID_MASK)


def _pinned() -> Iterator[Line]:
    """R2 is the number of the uplink that the port is pinned to."""
    yield set_cell(R2, PORT, UPLINK_AT)
    yield load(8, R2, R2, 0)
    yield compute(R2, "&=", UPLINK_MASK)


def _read_mac(at: int) -> Iterator[Line]:
    """R1 is the address at that place as a number, and SCRATCH on the stack holds it."""
    yield store(8, R10, SCRATCH, 0)
    yield from read(at, SCRATCH, MAC_BYTES)
    yield load(8, R1, R10, SCRATCH)


def _look_up() -> Iterator[Line]:
    """R0 is 0 if the switch's set doesn't have the address in SCRATCH (`bpf_map_lookup_elem`)."""
    yield set_map(R1, SWITCH)
    yield compute(R2, "=", R10)
    yield compute(R2, "+=", SCRATCH)
    yield call(MAP_LOOKUP)
