"""Steps in the kernel: all or nothing, read back, taken back, changed in place."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.errors import KernelError
from testbed.kernel import builder, htb_facts, netns, processes, readback
from testbed.kernel.alteration import alter
from testbed.kernel.observation import observe
from testbed.kernel.undo import remove
from testbed.plan.policies import Shape
from testbed.plan.steps import Address, Bridge, End, Netns, Route, Rule, Veth

pytestmark = pytest.mark.root

NO_IPV6 = ("net/ipv6/conf/default/disable_ipv6", "1")
ARP_IGNORE = ("net/ipv4/conf/all/arp_ignore", "1")  # a vmk's address is not the bridge's, too
BUFFERS = ("net/ipv4/tcp_rmem", "4096\t131072\t134217728")


def lab(name, rate=1_247_000_000):
    """Two hosts on one switch; each with an uplink, a virtual switch and a vmk; one VM."""
    tor, vm = f"{name}.tor", f"{name}.db01"
    steps = [Netns(tor, "tor", "switch", (NO_IPV6,)), Netns(vm, "db01", "vm", (NO_IPV6,))]
    hosts = [f"{name}.esx01", f"{name}.esx02"]
    steps += [Netns(host, host, "host", (NO_IPV6, BUFFERS, ARP_IGNORE)) for host in hosts]
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
    "has no HTB": "tc -n tb-k2.esx01 qdisc delete dev vmnic0 root",
    "HTB classes of vmnic0: wanted 1:1, the kernel has none": "tc -n tb-k2.esx01 class delete "
    "dev vmnic0 classid 1:1",
    "1:9": "tc -n tb-k2.esx01 class add dev vmnic0 parent 1: classid 1:9 htb rate 9gbit",
    "default class of vmnic0: wanted 0x1, the kernel has 0x2": "tc -n tb-k2.esx01 qdisc replace "
    "dev vmnic0 root handle 2: htb default 2",
    "spanning tree": "ip -n tb-k2.esx01 link set vSwitch0 type bridge stp_state 1",
    "ageing in 1/100 s of vSwitch0: wanted 30000": "ip -n tb-k2.esx01 link set vSwitch0 "
    "type bridge ageing_time 100",
    "ageing in 1/100 s of eth0: wanted 0": "ip -n tb-k2.db01 link set eth0 "
    "type bridge ageing_time 30000",
    "multicast snooping": "ip -n tb-k2.tor link set tor type bridge mcast_snooping 1",
    "forward delay": "ip -n tb-k2.tor link set tor type bridge forward_delay 200",
    "bridge port vmnic0: wanted PortSettings(isolated=False, learning=True": "bridge -n "
    "tb-k2.esx01 link set dev vmnic0 learning off",
    "state of lo": "ip -n tb-k2.esx02 link set lo down",
    "10.0.0.1/24": "ip -n tb-k2.esx01 address delete 10.0.0.1/24 dev vmk1",
    "fd00::2/64": "ip -n tb-k2.esx02 address delete fd00::2/64 dev vmk1",
    "others in table 101": "ip -n tb-k2.esx01 route delete default table 101",
    "table 101": "ip -n tb-k2.esx01 rule delete from 10.0.0.1",
    "priority 900": "ip -n tb-k2.esx01 rule add from 10.0.0.1 table 101 priority 900;"
    "ip -n tb-k2.esx01 rule delete from 10.0.0.1 priority 1000",
    "action 6": "ip -n tb-k2.esx01 -6 rule delete from fd00::1;"
    "ip -n tb-k2.esx01 -6 rule add from fd00::1 table 101 priority 1000 blackhole",
    "tcp_rmem": "ip netns exec tb-k2.esx01 sh -c "
    "'echo 4096 8192 9999 > /proc/sys/net/ipv4/tcp_rmem'",
    "rps_cpus": "ip netns exec tb-k2.esx01 sh -c "
    "'echo 0 > /sys/class/net/vmnic0/queues/rx-0/rps_cpus'",
    "arp_evict_nocarrier": "ip netns exec tb-k2.db01 "
    "sh -c 'echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_evict_nocarrier'",
    "ndisc_evict_nocarrier": "ip netns exec tb-k2.db01 "
    "sh -c 'echo 1 > /proc/sys/net/ipv6/conf/eth0/ndisc_evict_nocarrier'",
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


def test_counters_of_a_running_lab_tell_sent_from_received():
    """20 datagrams of 1000 bytes: at each link on their way, and as iproute2 counts."""
    # Without IPv6, whose multicast reports of their own accord would be counted, too.
    steps = [
        step
        for step in lab("tb-kf")
        if getattr(step, "family", 4) == 4 and ":" not in getattr(step, "address", "")
    ]
    here, there = "tb-kf.esx01", "tb-kf.esx02"
    frames, frame_bytes = 20, 1000 + 8 + 20 + 14
    with built(steps), ExitStack() as undo:
        ends = []
        for where in (here, there):
            with netns.inside(where):
                ends.append(undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        ends[1].bind(("10.0.0.2", 9))
        ends[1].settimeout(5)
        ends[0].sendto(b"ARP", ("10.0.0.2", 9))  # both neighbours are known from now on
        assert ends[1].recv(99) == b"ARP"
        before = observe(steps)
        for _ in range(frames):
            ends[0].sendto(bytes(1000), ("10.0.0.2", 9))
            assert len(ends[1].recv(2000)) == 1000
        after = observe(steps)

        def passed(key, way):
            values = [seen[f"link {key}"].link.counters for seen in (before, after)]
            packets, sent = (
                [getattr(value, f"{way}_{unit}") for value in values]
                for unit in ("packets", "bytes")
            )
            return packets[1] - packets[0], sent[1] - sent[0]

        path = [(here, "vmk1", "tx"), (here, "vmk1-port", "rx"), (here, "vmnic0", "tx")]
        path += [("tb-kf.tor", "esx01-vmnic0", "rx"), ("tb-kf.tor", "esx02-vmnic0", "tx")]
        path += [(there, "vmnic0", "rx"), (there, "vmk1-port", "tx"), (there, "vmk1", "rx")]
        for where, dev, way in path:
            key, back = f"{where}/{dev}", {"tx": "rx", "rx": "tx"}[way]
            assert passed(key, back)[0] <= 3, key  # a neighbour may be asked for once more
            packets, sent = passed(key, way)
            assert frames <= packets <= frames + 3, key
            assert 0 <= sent - frames * frame_bytes <= (packets - frames) * 150, key
            one = after[f"link {key}"]
            (theirs,) = json.loads(run("ip", "-n", where, "-s", "-j", "link", "show", dev))
            ours = one.link.counters
            for ways in ("tx", "rx"):
                assert (
                    0 <= theirs["stats64"][ways]["packets"] - getattr(ours, f"{ways}_packets") <= 3
                )
            shape = before[f"link {key}"].shape
            if way == "tx" and shape is not None:
                packets = one.shape.sent_packets - shape.sent_packets  # read after the link's
                sent = one.shape.sent_bytes - shape.sent_bytes
                assert frames <= packets <= frames + 3, key
                assert 0 <= sent - frames * frame_bytes <= (packets - frames) * 150, key
                # as text: iproute2 6.1 prints no classes as JSON
                text = run("tc", "-n", where, "-s", "class", "show", "dev", dev)
                their = re.search(r"Sent (\d+) bytes (\d+) pkt", text)
                assert 0 <= int(their[1]) - one.shape.sent_bytes <= 300
                assert 0 <= int(their[2]) - one.shape.sent_packets <= 3


def test_packets_beyond_32_bits_are_counted():
    """As the kernel reports them (gnet_stats_copy_basic): the low half, and all of it."""

    def attribute(kind, data):
        return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)

    packets = 2**32 + 7
    basic = attribute(1, struct.pack("=QI", 10**13, packets % 2**32))
    statistics = attribute(7, basic + attribute(8, struct.pack("=Q", packets)))
    message = struct.pack("=BxxxiIII", 0, 2, 0x10001, 0x10000, 0) + statistics

    class Socket:
        def dump(self, _):
            return [(message, 0, len(message))]

    (found,) = htb_facts.read_classes(Socket(), 2)
    assert (found.sent_bytes, found.sent_packets) == (10**13, packets)


def test_processes_of_a_running_lab():
    steps = lab("tb-ke")
    with built(steps):
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
