"""Steps in the kernel: all or nothing, read back, taken back, changed in place."""

from __future__ import annotations

import signal
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.errors import KernelError
from testbed.kernel import builder, netns, processes, readback
from testbed.kernel.alteration import alter
from testbed.kernel.observation import observe
from testbed.kernel.undo import remove
from testbed.plan.steps import Address, Bridge, End, Netns, Route, Rule, Shape, Veth

pytestmark = pytest.mark.root

NO_IPV6 = ("net/ipv6/conf/default/disable_ipv6", "1")
BUFFERS = ("net/ipv4/tcp_rmem", "4096\t131072\t134217728")


def lab(name, rate=1_247_000_000):
    """Two hosts on one switch; each with an uplink, a virtual switch and a vmk; one VM."""
    tor, vm = f"{name}.tor", f"{name}.db01"
    steps = [Netns(tor, "tor", "switch", (NO_IPV6,)), Netns(vm, "db01", "vm", (NO_IPV6,))]
    hosts = [f"{name}.esx01", f"{name}.esx02"]
    steps += [Netns(host, host, "host", (NO_IPV6, BUFFERS)) for host in hosts]
    steps.append(Bridge(tor, "tor", 9000, f"{name} tor"))
    steps.append(Bridge(vm, "eth0", 1500, f"{name} nic", "00:50:56:00:00:01"))
    for n, host in enumerate(hosts, 1):
        steps.append(Bridge(host, "vSwitch0", 9000, f"{name} vSwitch0"))
        uplink = End(host, "vmnic0", 9000, "uplink", f"02:00:00:00:00:0{n}", "vSwitch0")
        steps.append(Veth(uplink, End(tor, f"esx0{n}-vmnic0", 9000, "cable", master="tor")))
        wire = Veth(
            End(host, "vmk1", 9000, "vmk"), End(host, "vmk1-port", 9000, "port", None, "vSwitch0")
        )
        steps.append(wire)
        steps.append(Address(host, "vmk1", f"10.0.0.{n}/24", wire.key))
        steps.append(Address(host, "vmk1", f"fd00::{n}/64", wire.key))
        steps.append(Route(host, "10.0.0.0/24", "vmk1", 101, "", 4, None, f"10.0.0.{n}"))
        steps.append(Route(host, "default", "vmk1", 101, "", 4, "10.0.0.254"))
        steps.append(Route(host, "default", "vmk1", 101, "", 6, "fd00::fe"))
        steps.append(Rule(host, f"10.0.0.{n}", 101, 4))
        steps.append(Rule(host, f"fd00::{n}", 101, 6))
        steps.append(Shape(host, "vmnic0", 10**10, 9000, rate, 262144, ""))
        steps.append(Shape(tor, f"esx0{n}-vmnic0", 10**10, 9000, rate, 262144, ""))
    steps.append(
        Veth(
            End(vm, "esx01", 1500, "wire", None, "eth0"),
            End(hosts[0], "db01", 1500, "port", None, "vSwitch0", forwarding=False),
        )
    )
    steps.append(Address(vm, "eth0", "10.0.0.51/24", ""))
    return steps


@contextmanager
def built(steps):
    builder.build(steps)
    try:
        yield
    finally:
        remove(steps)


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def state():
    """What could be left behind."""
    return (
        netns.names(),
        [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "net:" in line],
        run("ip", "-br", "link"),
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
    )


def test_what_is_built_is_there_as_iproute2_sees_it():
    steps = lab("tb-k1")
    with built(steps):
        readback.verify(steps)
        assert "tb-k1.esx01" in run("ip", "netns", "list")
        assert "rate 9976Mbit" in run("tc", "-n", "tb-k1.esx01", "class", "show", "dev", "vmnic0")
        assert "alias uplink" in run("ip", "-n", "tb-k1.esx01", "link", "show", "vmnic0")
        assert "nodad" in run("ip", "-n", "tb-k1.esx02", "-6", "address", "show", "vmk1")
        port = run("ip", "-n", "tb-k1.esx01", "-d", "link", "show", "db01")
        assert "state listening" in port
        assert "learning on" in port  # the bar is lifted once it is closed
        assert "locked off" in port


FOUND_BY_READBACK = {
    "MTU": "ip -n tb-k2.esx01 link set vmnic0 mtu 1400",
    "MAC": "ip -n tb-k2.esx01 link set vmnic0 address 02:00:00:00:00:99",
    "down": "ip -n tb-k2.esx01 link set vmnic0 down",
    "bridge": "ip -n tb-k2.esx01 link set vmnic0 nomaster",
    "alias": "ip -n tb-k2.esx01 link set vmnic0 alias other",
    "none of that name": "ip -n tb-k2.tor link delete esx02-vmnic0",
    "rate in bytes/s": "tc -n tb-k2.esx01 class change dev vmnic0 parent 1: classid 1:1 htb "
    "rate 9990mbit burst 262144 cburst 262144",
    "burst in ticks": "tc -n tb-k2.esx01 class change dev vmnic0 parent 1: classid 1:1 htb "
    "rate 9976mbit burst 100000 cburst 262144",
    "HTB class": "tc -n tb-k2.esx01 qdisc delete dev vmnic0 root",
    "10.0.0.1/24": "ip -n tb-k2.esx01 address delete 10.0.0.1/24 dev vmk1",
    "fd00::2/64": "ip -n tb-k2.esx02 address delete fd00::2/64 dev vmk1",
    "others in table 101": "ip -n tb-k2.esx01 route delete default table 101",
    "table 101": "ip -n tb-k2.esx01 rule delete from 10.0.0.1",
    "tcp_rmem": "ip netns exec tb-k2.esx01 sh -c 'echo 1 2 3 > /proc/sys/net/ipv4/tcp_rmem'",
    "rps_cpus": "ip netns exec tb-k2.esx01 sh -c "
    "'echo 0 > /sys/class/net/vmnic0/queues/rx-0/rps_cpus'",
}


@pytest.mark.parametrize("what", FOUND_BY_READBACK)
def test_a_thing_that_is_not_as_planned_is_found(what):
    steps = lab("tb-k2")
    with built(steps):
        run("sh", "-c", FOUND_BY_READBACK[what])
        with pytest.raises(KernelError) as caught:
            readback.verify(steps)
        assert what in str(caught.value)
        assert "tb-k2" in str(caught.value)


def test_a_failure_before_any_step_leaves_nothing():
    steps = lab("tb-k3")
    before = state()

    class InjectedError(Exception):
        pass

    for stop in steps:

        def fail(step, stop=stop):
            if step is stop:
                raise InjectedError

        with pytest.raises(InjectedError):
            builder.build(steps, batch=1, before=fail)
        assert state() == before, stop.key


def test_earlier_steps_are_in_the_kernel_when_sent_one_by_one():
    steps = lab("tb-k4")
    seen = []

    def look(step):
        if isinstance(step, Rule):
            seen.append(run("ip", "-n", step.netns, "-br", "link"))

    builder.build(steps, batch=1, before=look)
    remove(steps)
    assert len(seen) == 4
    assert all("vmnic0" in links for links in seen)


def test_an_interrupt_leaves_nothing():
    before = state()
    main = threading.main_thread()

    def interrupt(step):
        if isinstance(step, Rule):
            assert threading.current_thread() is not main
            signal.pthread_kill(main.ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        builder.build(lab("tb-k5"), batch=1, before=interrupt)
    assert state() == before


def test_a_namespace_of_that_name_is_left_alone():
    run("ip", "netns", "add", "tb-k6.esx02")
    try:
        with pytest.raises(KernelError) as caught:
            builder.build(lab("tb-k6"))
        assert "ip netns delete tb-k6.esx02" in caught.value.remedy
        assert [name for name in netns.names() if name.startswith("tb-k6")] == ["tb-k6.esx02"]
    finally:
        run("ip", "netns", "delete", "tb-k6.esx02")


REFUSED = [
    (Address("tb-k7.esx01", "vmk1", "10.0.0.1/24", ""), "EEXIST"),
    (Route("tb-k7.esx01", "10.9.0.0/16", "vmk1", 101, "", 4, "172.16.0.1"), "has invalid gateway"),
    (Rule("tb-k7.esx01", "10.0.0.1", 101, 4), "EEXIST"),
    (Bridge("tb-k7.esx01", "vSwitch0", 9000, ""), "EEXIST"),
    (Address("tb-k7.esx01", "vmk9", "10.0.0.9/24", ""), "none of that name"),
    (Veth(End("tb-k7.esx01", "a", 70000, ""), End("tb-k7.esx01", "b", 1500, "")), "EINVAL"),
    (Netns("tb-k7.new", "n", "host", (("net/ipv4/tcp_rmem", "x"),)), "tcp_rmem"),
]


@pytest.mark.parametrize(("step", "words"), REFUSED, ids=lambda value: getattr(value, "kind", ""))
def test_what_the_kernel_refuses_says_why_and_harms_nothing(step, words):
    steps = lab("tb-k7")
    with built(steps):
        before = state()
        with pytest.raises(KernelError) as caught:
            builder.build([Bridge("tb-k7.esx01", "new", 1500, ""), step])
        assert words.lower() in str(caught.value).lower()
        assert caught.value.remedy
        assert state() == before
        readback.verify(steps)
        assert "new" not in run("ip", "-n", "tb-k7.esx01", "-br", "link").split()


def test_a_running_lab_is_extended_and_cut_back():
    steps = lab("tb-k8")
    host = "tb-k8.esx02"
    wire = Veth(End(host, "vmk2", 9000, "vmk"), End(host, "vmk2-p", 9000, "port", None, "vSwitch0"))
    more = [
        wire,
        Address(host, "vmk2", "10.0.0.22/24", wire.key),
        Address(host, "vmk2", "fd00::22/64", wire.key),
        Route(host, "default", "vmk2", 102, "", 4, "10.0.0.254"),
        Rule(host, "10.0.0.22", 102, 4),
        Shape(host, "vmk2", 10**8, 9000, 12_400_000, 65536, wire.key),
    ]
    with built(steps):
        before = run("sh", "-c", f"ip -n {host} -br addr; ip -n {host} rule; ip -n {host} route")
        builder.build(more)
        readback.verify(steps + more)
        remove(more[1:])
        readback.verify([*steps, wire])
        assert "htb" not in run("tc", "-n", host, "qdisc", "show", "dev", "vmk2")
        remove(more)
        remove(more)  # gone already
        readback.verify(steps)
        after = run("sh", "-c", f"ip -n {host} -br addr; ip -n {host} rule; ip -n {host} route")
        assert after == before


def test_a_wire_to_a_removed_node_goes_with_it_at_once():
    steps = lab("tb-k9")
    with built(steps):
        remove([s for s in steps if "tb-k9.esx02" in (s.key + " ".join(s.needs))])
        assert "esx02-vmnic0" not in run("ip", "-n", "tb-k9.tor", "-br", "link")
        assert "tb-k9.esx02" not in netns.names()


def test_changes_in_place():
    steps = lab("tb-ka")
    with built(steps):
        shape = next(s for s in steps if isinstance(s, Shape))
        slower = replace(shape, htb_rate_bytes_per_s=6_000_000_000, burst_bytes=300_000)
        alter(shape, slower)  # beyond 32 bits
        assert "rate 48Gbit" in run("tc", "-n", shape.netns, "class", "show", "dev", shape.dev)
        wire = next(s for s in steps if isinstance(s, Veth) and s.a.name == "vmk1")
        for mtu in (1500, 9000):
            new = replace(wire, a=replace(wire.a, mtu=mtu), b=replace(wire.b, mtu=mtu))
            alter(wire, new)
            assert f"mtu {mtu}" in run("ip", "-n", wire.a.netns, "link", "show", "vmk1")
        bad = replace(wire, a=replace(wire.a, mtu=1400), b=replace(wire.b, mtu=70000))
        with pytest.raises(KernelError):
            alter(wire, bad)
        readback.verify([wire, slower])  # as it was


def test_a_bridge_keeps_its_mtu_whatever_its_ports_have():
    name = "tb-kb"
    port = Veth(End(name, "p", 1500, "", None, "br"), End(name, "q", 1500, ""))
    for mtu in (9000, 1500):
        steps = [Netns(name, "n", "switch"), Bridge(name, "br", mtu, ""), port]
        with built(steps):
            readback.verify(steps)


def test_two_builds_side_by_side():
    labs = [lab("tb-kc"), lab("tb-kd")]
    failures = []

    def make(steps):
        try:
            builder.build(steps, batch=3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=(steps,)) for steps in labs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert not failures
        for steps in labs:
            readback.verify(steps)
        remove(labs[0])
        readback.verify(labs[1])
    finally:
        for steps in labs:
            remove(steps)


def test_counters_and_processes_of_a_running_lab():
    steps = lab("tb-ke")
    with built(steps):
        before = observe(steps)["link tb-ke.esx01/vmnic0"]
        script = "echo hi > /dev/udp/10.0.0.2/9; echo hi > /dev/udp/10.0.0.2/9"
        run("ip", "netns", "exec", "tb-ke.esx01", "bash", "-c", script)
        after = observe(steps)["link tb-ke.esx01/vmnic0"]
        assert after.link.counters.tx_packets > before.link.counters.tx_packets
        assert after.shape.sent_packets > before.shape.sent_packets

        deaf = "trap '' TERM; echo ready; while :; do sleep 1; done"
        with subprocess.Popen(
            ["ip", "netns", "exec", "tb-ke.esx01", "sh", "-c", deaf], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout.readline() == b"ready\n"
            found = processes.processes_in(["tb-ke.esx01", "tb-ke.gone"])
            assert child.pid in found
            assert processes.processes_in(["tb-ke.esx02"]) == ()
            assert child.pid in processes.end_in(["tb-ke.esx01"], grace_s=0.1)
            assert processes.processes_in(["tb-ke.esx01"]) == ()
            assert child.wait() == -signal.SIGKILL
