"""A refused step in words: what was tried, on what, the kernel's reason, what to do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.plan.policies import Chain, Netem, Offloads, Shape
from testbed.plan.steps import Address, Bridge, KernelStep, Netns, Route, Rule, Veth

if TYPE_CHECKING:
    from testbed.kernel.netlink import RefusedError

_REMEDIES = {
    errno.EPERM: "run as root, in a privileged container",
    errno.EEXIST: "something of that name is there already: another lab's, or left by hand",
    errno.EOPNOTSUPP: "this kernel lacks it; see `testbed doctor`",
    errno.ENOENT: "this kernel may lack it; see `testbed doctor`",
    errno.ENODEV: "was the link removed meanwhile? see `testbed status`",
    errno.EBUSY: "another program is changing this namespace; try again",
    errno.ENOMEM: "free memory, or make the lab smaller",
    errno.ENOBUFS: "free memory, or make the lab smaller",
    errno.ENETUNREACH: "the gateway must lie in a network of this link",
}
_CHANGED = "another program may have changed it: 'testbed down' and 'up' put it right"
_ANY = "see `testbed plan` for the step, `dmesg` for the kernel's reasons"


def describe(step: KernelStep) -> tuple[str, str]:
    """The kind of a step's object, and which one: for people."""
    match step:
        case Netns():
            return "namespace", step.name
        case Bridge():
            return "bridge", f"{step.name} in {step.netns} ({step.alias})"
        case Veth():
            return "veth", f"{step.a.name} in {step.a.netns} <-> {step.b.name} in {step.b.netns}"
        case Address():
            return "address", f"{step.address} on {step.dev} in {step.netns}"
        case Route():
            via = f" via {step.via}" if step.via else ""
            where = f"{via} dev {step.dev} table {step.table} in {step.netns}"
            return "route", f"{step.destination}{where}"
        case Rule():
            return "rule", f"from {step.source} table {step.table} in {step.netns}"
        case Shape():
            rate = f"{step.htb_rate_bytes_per_s} bytes/s"
            return "shape", f"{rate} on {step.dev} in {step.netns}"
        case Chain() | Offloads() | Netem():
            return step.kind, f"{step.dev} in {step.netns}"


def differs(step: KernelStep, what: str, wanted: object, found: object) -> KernelError:
    """The error for a step that the kernel does not have as it should."""
    kind, target = describe(step)
    cause = f"{what}: wanted {wanted}, the kernel has {found}"
    return KernelError(f"keep {kind}", target, cause, _CHANGED)


def kernel_error(step: KernelStep, refusal: RefusedError, verb: str = "create") -> KernelError:
    """The error for a step that the kernel refused."""
    kind, target = describe(step)
    remedy = _REMEDIES.get(refusal.number, _ANY)
    return KernelError(f"{verb} {kind}", target, refusal.cause, remedy)
