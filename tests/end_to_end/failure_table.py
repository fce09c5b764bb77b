"""The failure matrix as data: what each fault does in each phase of a migration.

tests/end_to_end/test_failure_matrix.py proves every cell on a lab, and scripts/reference.py makes
docs/reference/failures.md of them.
"""

from __future__ import annotations

from typing import NamedTuple

TITLE = "What a failure leaves of a migration"
ABOUT = """\
Where the guest runs after a fault in a phase of its migration: at its `source`, at its
`destination`, or nowhere, as it `died` with the VMX that it ran in; `testbed up` powers it on
afresh. Empty: not tried, or it can't be.

Each cell is a test on a running lab (`tests/end_to_end/test_failure_matrix.py`). Where the guest
runs, it goes on from where it was, and every page of its memory is what it wrote. On the other
side no process, port, connection or file is left; where it died, no process of it is. Once the link
is up again, and a guest that died is powered on, the guest answers pings and the lab carries the
next migration.

A result tells the phase in which the fault was noticed, which may be the next one: while tracing
is installed nothing is sent. Of a source that died it is the phase that it had last told of. Should
the destination's VMX die within the first milliseconds after resume, before the lab has heard that
the guest runs there, the guest runs on at its source as it was when it was suspended.
"""
PHASES = {
    "before": "before it is asked for",
    "preparation": "the destination makes a masked guest, and registers with its host's agent",
    "connect": "the source connects, and both ends prove who they are",
    "trace": "dirty tracking is installed",
    "pre-copy": "memory is copied while the guest runs",
    "switchover": "the guest is stunned, the last pages are on their way",
    "resume": "the guest runs at the destination, and the source has not heard of it",
    "page-in": "Quick Resume: the guest runs at the destination without some of its pages",
    "after": "the result has been told",
}
FAULTS = {
    "link down for 1 s": "between the hosts, and up again; the timeout is longer",
    "link down for good": "between the hosts; the timeout is shorter",
    "delay over the timeout": "of the link between the hosts, from then on",
    "round trip over the limit": "of the profile",
    "destination's VMX killed": "with SIGKILL",
    "source's VMX killed": "with SIGKILL",
    "source's host off": "all of its processes killed, its NIC without a link",
    "destination's agent killed": "with SIGKILL: who listens on port 8000",
    "no memory at the destination": "by admission; in preparation the kernel refuses it",
    "strangers on port 8000": "one with garbage, one with the migration's number and no secret",
    "cancelled": "with Ctrl-C",
}


class Cell(NamedTuple):
    """What a fault does in a phase.

    `guest` is where the guest runs afterwards, with its memory intact: at the `source`, at the
    `destination`, or nowhere, as it `died` with its VMX. `outcome` is the migration's: `completed`,
    `failed`, or `refused` before anything is touched. A failure names the phase `named`; it, or
    the refusal, says one of `says`.
    """

    phase: str
    fault: str
    guest: str
    outcome: str
    named: str = ""
    says: tuple[str, ...] = ()


NO_ANSWER = ("nothing moved for", "Connection timed out")  # TCP's own timeout, or the migration's
GONE = ("Connection reset by peer", "Broken pipe", "the peer has closed the connection")
DIED = ("the source's VMX ended with the guest",)

CELLS = (
    Cell("before", "link down for good", "source", "refused", "", ("gets no answer from",)),
    Cell("before", "round trip over the limit", "source", "refused", "", ("supports 150 ms",)),
    Cell("before", "source's VMX killed", "died", "refused", "", ("db01 has failed",)),
    Cell("before", "destination's agent killed", "destination", "completed"),
    Cell("before", "no memory at the destination", "source", "refused", "", ("of memory free",)),
    Cell("preparation", "link down for 1 s", "destination", "completed"),
    Cell("preparation", "link down for good", "source", "failed", "connect", NO_ANSWER),
    Cell("preparation", "delay over the timeout", "source", "failed", "connect", NO_ANSWER),
    Cell("preparation", "destination's VMX killed", "source", "failed", "prepare",
         ("at the destination: process",)),
    Cell("preparation", "source's VMX killed", "died", "failed", "connect", DIED),
    Cell("preparation", "destination's agent killed", "source", "failed", "prepare",
         ("register with the host's agent",)),
    Cell("preparation", "no memory at the destination", "source", "failed", "prepare",
         ("allocate 8 MiB for VM db01",)),
    Cell("connect", "link down for 1 s", "destination", "completed"),
    Cell("connect", "link down for good", "source", "failed", "connect", NO_ANSWER),
    Cell("connect", "destination's VMX killed", "source", "failed", "connect",
         ("the destination did not accept this migration",)),
    Cell("connect", "source's VMX killed", "died", "failed", "connect", DIED),
    Cell("connect", "destination's agent killed", "source", "failed", "connect",
         ("Connection refused", *GONE)),
    Cell("connect", "strangers on port 8000", "destination", "completed"),
    Cell("connect", "cancelled", "source", "failed", "connect", ("cancelled",)),
    Cell("trace", "link down for good", "source", "failed", "pre-copy", NO_ANSWER),
    Cell("trace", "destination's VMX killed", "source", "failed", "pre-copy", GONE),
    Cell("trace", "source's VMX killed", "died", "failed", "connect", DIED),
    Cell("trace", "destination's agent killed", "destination", "completed"),
    Cell("trace", "cancelled", "source", "failed", "pre-copy", ("cancelled",)),
    Cell("pre-copy", "link down for 1 s", "destination", "completed"),
    Cell("pre-copy", "link down for good", "source", "failed", "pre-copy", NO_ANSWER),
    Cell("pre-copy", "delay over the timeout", "source", "failed", "pre-copy", NO_ANSWER),
    Cell("pre-copy", "destination's VMX killed", "source", "failed", "pre-copy", GONE),
    Cell("pre-copy", "source's VMX killed", "died", "failed", "pre-copy", DIED),
    Cell("pre-copy", "source's host off", "died", "failed", "pre-copy", DIED),
    Cell("pre-copy", "destination's agent killed", "destination", "completed"),
    Cell("pre-copy", "strangers on port 8000", "destination", "completed"),
    Cell("pre-copy", "cancelled", "source", "failed", "pre-copy", ("cancelled",)),
    Cell("switchover", "link down for 1 s", "destination", "completed"),
    Cell("switchover", "link down for good", "source", "failed", "switchover", NO_ANSWER),
    Cell("switchover", "delay over the timeout", "source", "failed", "switchover", NO_ANSWER),
    Cell("switchover", "destination's VMX killed", "source", "failed", "switchover", GONE),
    Cell("switchover", "source's VMX killed", "died", "failed", "switchover", DIED),
    Cell("switchover", "destination's agent killed", "destination", "completed"),
    Cell("switchover", "strangers on port 8000", "destination", "completed"),
    Cell("switchover", "cancelled", "destination", "completed"),
    Cell("resume", "link down for 1 s", "destination", "completed"),
    Cell("resume", "link down for good", "destination", "completed"),
    Cell("resume", "source's VMX killed", "destination", "completed"),
    Cell("resume", "source's host off", "destination", "completed"),
    Cell("resume", "cancelled", "destination", "completed"),
    Cell("page-in", "link down for 1 s", "destination", "completed"),
    Cell("page-in", "link down for good", "destination", "completed"),
    Cell("page-in", "delay over the timeout", "destination", "completed"),
    Cell("page-in", "destination's VMX killed", "died", "failed", "page-in", ("db01 has failed",)),
    Cell("page-in", "source's VMX killed", "died", "failed", "page-in", DIED),
    Cell("page-in", "destination's agent killed", "destination", "completed"),
    Cell("page-in", "strangers on port 8000", "destination", "completed"),
    Cell("page-in", "cancelled", "destination", "completed"),
    Cell("after", "link down for good", "destination", "completed"),
    Cell("after", "destination's VMX killed", "died", "completed"),
    Cell("after", "source's host off", "destination", "completed"),
    Cell("after", "destination's agent killed", "destination", "completed"),
    Cell("after", "strangers on port 8000", "destination", "completed"),
)  # fmt: skip
