"""What needs no kernel: masks, sysctl values, error texts, netlink's attribute walk."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import KernelError
from testbed.kernel import netns, sysctl
from testbed.kernel.netlink import RefusedError, attributes
from testbed.kernel.refusals import kernel_error
from testbed.plan.policies import Chain, Netem, Offloads, Shape
from testbed.plan.steps import Address, Bridge, End, Netns, Route, Rule, Veth


@given(st.integers(0, 1023))
def test_a_cpu_mask_has_words_of_32_bits(cpu):
    mask = sysctl.cpu_mask(cpu)
    assert int(mask.replace(",", ""), 16) == 1 << cpu
    assert all(len(word) == 8 for word in mask.split(",")[1:])
    assert sysctl.same_mask(mask, "00000000," + mask.rjust(8, "0") if "," not in mask else mask)


def test_sysctl_values_compare_by_their_fields():
    assert sysctl.canonical("4096\t131072\t134217728\n") == sysctl.canonical(
        "4096 131072 134217728"
    )


STEPS = [
    Netns("lab-esx01", "esx01", "host"),
    Bridge("lab-esx01", "vSwitch0", 9000, "lab vSwitch0"),
    Veth(End("lab-esx01", "vmnic0", 9000, ""), End("lab-tor", "esx01-vmnic0", 9000, "")),
    Address("lab-esx01", "vmk1", "192.168.20.11/24", ""),
    Route("lab-esx01", "default", "vmk1", 101, "", 4, "192.168.20.1"),
    Rule("lab-esx01", "192.168.20.11", 101, 4),
    Shape("lab-esx01", "vmnic0", 10**9, 1500, 123_000_000, 65536, ""),
    Chain("lab-esx01", "vmnic0", "", (), ()),
    Offloads("lab-esx01", "vmnic0", ""),
    Netem("lab-esx01", "vmnic0", "", 10**6, 0, 1000),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
def test_a_refusal_names_object_namespace_cause_and_remedy(step):
    error = kernel_error(step, RefusedError(0, errno.EPERM, "because of this"))
    text = str(error)
    assert "lab-esx01" in text
    assert "because of this" in text
    assert "EPERM" in text
    assert "run as root" in error.remedy


def test_a_truncated_attribute_ends_the_walk():
    good = struct.pack("=HHI", 8, 3, 42)
    assert [kind for kind, _, _ in attributes(good + b"\1\0\1\0", 0, 12)] == [3]


def test_a_missing_namespace_is_an_error_that_says_where_to_look():
    with pytest.raises(KernelError, match="ip netns list"):
        netns.identity("tb-there-is-no-such-namespace")


def test_what_a_thread_raises_and_returns_comes_back():
    assert netns.in_thread(lambda _: 42) == 42
    with pytest.raises(ZeroDivisionError):
        netns.in_thread(lambda _: 1 // 0)
