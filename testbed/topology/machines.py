"""Virtual machines as the file writes them: adapters, memory and workloads."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from testbed.topology import leaves
from testbed.topology import policy_leaves as policies
from testbed.topology import workload_leaves as workloads
from testbed.topology.leaf import ByKind, OneOrMany
from testbed.topology.objects import FileObject


class Bandwidth(FileObject):
    """What Network I/O Control gives an adapter of a VM, within virtualMachine's part."""

    shares: policies.Shares = Field(
        None, description="Weight: low, normal (if left out), high or a number from 1 to 100."
    )
    reservation: leaves.Rate = Field(
        None,
        description="Guaranteed; those of a host together at most virtualMachine's reservation.",
    )
    limit: leaves.Rate = Field(None, description="Never more than this.")


class VmNic(FileObject):
    """A network adapter of a VM: eth0, eth1 and so on; its MTU is its virtual switch's."""

    portgroup: leaves.Reference = Field(description="The port group that it is in.")
    ip: Annotated[tuple[leaves.Address, ...], OneOrMany()] = Field(
        (), description="Addresses with prefix length, at most one each for IPv4 and IPv6."
    )
    gateway: Annotated[tuple[leaves.Gateway, ...], OneOrMany()] = Field(
        (), description="Router for other networks, in its own subnet; at most one a family."
    )
    mac: leaves.Mac = Field(None, description="MAC address; derived from the names if left out.")
    vlan: policies.Vlan = Field(
        None,
        description="The VLAN that the guest tags its frames with itself; only in a port group "
        "with guest tagging or a trunk.",
    )
    bandwidth: Bandwidth | None = Field(
        None, description="Its own part of virtualMachine's; needs Network I/O Control."
    )


class IdleWorkload(FileObject):
    """A VM that does nothing."""

    kind: Annotated[Literal["idle"] | None, workloads.kind_of("idle")] = Field(
        description="Writes nothing."
    )


class WriterWorkload(FileObject):
    """Writes pages of a working set of its own, at a rate."""

    kind: Annotated[
        Literal["uniform", "sequential"] | None, workloads.kind_of("uniform", "sequential")
    ] = Field(
        description="uniform picks pages of the working set at random; sequential goes through it "
        "in order, again and again."
    )
    dirty_rate: leaves.DirtyRate = Field(
        description="What all vCPUs together write: page writes times 4096 bytes a second."
    )
    working_set: leaves.WorkingSet = Field(
        None, description="The part of memory that is written, 20% if left out."
    )


class ZipfWorkload(FileObject):
    """Writes few pages of a working set often, and most of them seldom: a hot spot."""

    kind: Annotated[Literal["zipf"] | None, workloads.kind_of("zipf")] = Field(
        description="Prefers few pages: the r-th with a probability of r to the minus exponent."
    )
    dirty_rate: leaves.DirtyRate = Field(
        description="What all vCPUs together write: page writes times 4096 bytes a second."
    )
    working_set: leaves.WorkingSet = Field(
        None, description="The part of memory that is written, 20% if left out."
    )
    exponent: workloads.Exponent = Field(
        None, description="How much the few are preferred; 0.99 if left out."
    )


class AllocateWorkload(FileObject):
    """Fills memory that was zero, once, then rests: the memory allocation tool of a 2009 test."""

    kind: Annotated[Literal["allocate"] | None, workloads.kind_of("allocate")] = Field(
        description="Fills zero memory, once."
    )
    size: workloads.AllocatedSize = Field(description="How much, or which part of the memory.")
    rate: leaves.DirtyRate = Field(
        None, description="How fast, such as 200MB/s; as fast as it can if left out."
    )


class OltpWorkload(FileObject):
    """Transactions over a buffer pool, each with a page of the log; give commits or dirty_rate."""

    kind: Annotated[Literal["oltp"] | None, workloads.kind_of("oltp")] = Field(
        description="A database: reads and writes pages of a pool, then a log page, and commits."
    )
    dirty_rate: leaves.DirtyRate = Field(
        None,
        description="Page writes times 4096 bytes a second: pages_per_commit + 1 for each commit.",
    )
    commits: workloads.Commits = Field(None, description="Transactions a second.")
    working_set: leaves.WorkingSet = Field(
        None,
        description="Nine tenths of it are the pool, the rest is the log; 20% if left out.",
    )
    pages_per_commit: workloads.PagesPerCommit = Field(
        None, description="Pages of the pool that a transaction reads and writes; 10 if left out."
    )
    exponent: workloads.Exponent = Field(
        None, description="How much few of them are preferred; 0.99 if left out."
    )


class IometerWorkload(FileObject):
    """Reads and writes blocks of a file on the VM's datastore, at random."""

    kind: Annotated[Literal["iometer"] | None, workloads.kind_of("iometer")] = Field(
        description="Disk I/O with requests outstanding, as IOMeter."
    )
    file: workloads.IometerFile = Field(None, description="Size of the file; 64MiB if left out.")
    block: workloads.Block = Field(None, description="Size of a request; 4KiB if left out.")
    reads: workloads.Reads = Field(None, description="Share of reads; 67% if left out.")
    outstanding: workloads.Outstanding = Field(
        None, description="Requests under way at a time; 16 if left out."
    )
    iops: workloads.Iops = Field(
        None, description="Requests a second; as many as it can if left out."
    )


class WebWorkload(FileObject):
    """A web server: GET /N downloads file number N."""

    kind: Annotated[Literal["web"] | None, workloads.kind_of("web")] = Field(
        description="HTTP downloads, answered by vCPU code."
    )
    port: workloads.Port = Field(None, description="TCP port; 80 if left out.")
    file: workloads.WebFile = Field(None, description="Size of a file; 10MiB if left out.")


class MediaWorkload(FileObject):
    """A media stream without buffering: whoever connects is sent a paced stream."""

    kind: Annotated[Literal["media"] | None, workloads.kind_of("media")] = Field(
        description="A paced stream over TCP, sent by vCPU code."
    )
    port: workloads.Port = Field(None, description="TCP port; 554 if left out.")
    rate: leaves.Rate = Field(None, description="Its rate; 8Mbit if left out.")


class EchoWorkload(FileObject):
    """TCP echo."""

    kind: Annotated[Literal["echo"] | None, workloads.kind_of("echo")] = Field(
        description="Sends back what it is sent, by vCPU code."
    )
    port: workloads.Port = Field(None, description="TCP port; 7 if left out.")


class BulkWorkload(FileObject):
    """Sends to whoever listens at an address, over one TCP connection, as fast as it may."""

    kind: Annotated[Literal["bulk"] | None, workloads.kind_of("bulk")] = Field(
        description="A bulk transfer over TCP, sent by vCPU code."
    )
    to: workloads.Peer = Field(description="Where to: an address of a VM that has a sink, say.")
    port: workloads.Port = Field(None, description="TCP port there; 9 if left out.")
    rate: leaves.Rate = Field(
        None, description="How fast, such as 100Mbit; as fast as it may if left out."
    )


class SinkWorkload(FileObject):
    """Takes whatever is sent to it, and counts it: TCP discard."""

    kind: Annotated[Literal["sink"] | None, workloads.kind_of("sink")] = Field(
        description="Takes what others send, by vCPU code."
    )
    port: workloads.Port = Field(None, description="TCP port; 9 if left out.")


class PingWorkload(FileObject):
    """Answers ICMP and ICMPv6 echo requests by vCPU code, so that a stopped guest is silent."""

    kind: Annotated[Literal["ping"] | None, workloads.kind_of("ping")] = Field(
        description="Pings are answered by vCPU code, not by the kernel."
    )


class ReplayWorkload(FileObject):
    """Writes what a trace file says; `testbed vm NAME record` makes one."""

    kind: Annotated[Literal["replay"] | None, workloads.kind_of("replay")] = Field(
        description="Page writes over time, from a file."
    )
    trace: workloads.Trace = Field(
        description="The trace file, seen from the topology file's directory."
    )
    repeat: policies.OnOff = Field(
        False, description="Whether it begins again at its end; off if left out."
    )


MemoryWorkload: TypeAlias = WriterWorkload | ZipfWorkload | OltpWorkload | AllocateWorkload
Workload: TypeAlias = (
    IdleWorkload | WriterWorkload | ZipfWorkload | AllocateWorkload | OltpWorkload
    | IometerWorkload | WebWorkload | MediaWorkload | EchoWorkload | BulkWorkload | SinkWorkload
    | PingWorkload | ReplayWorkload
)  # fmt: skip


class Vm(FileObject):
    """A virtual machine."""

    host: leaves.Reference = Field(description="The host on which it is powered on.")
    memory: leaves.Memory = Field(description="Its memory.")
    vcpus: leaves.Vcpus = Field(1, description="Its virtual CPUs, a process each.")
    datastore: leaves.Reference = Field(description="The datastore of its files.")
    nics: tuple[VmNic, ...] = Field((), description="Its network adapters.")
    memory_in_use: workloads.ShareOrSize = Field(
        None,
        description="How much of its memory is filled when it is powered on, a size or a share; "
        "the rest is zero. All if left out; none of it in a VM that has an allocate workload.",
    )
    page_size: workloads.PageSize = Field(
        "4KiB", description="Pages of this machine that hold its memory; 2MiB are large pages."
    )
    backing: workloads.Backing = Field(
        "real",
        description="real memory, or synthetic for more than this machine has: each page is a "
        "number and a version, whole on the wire.",
    )
    reservation: workloads.ShareOrSize = Field(
        None,
        description="Memory that it surely gets; all if left out. Of the rest a host that has too "
        "little for its VMs gives each its part, and swaps the remainder.",
    )
    affinity: tuple[workloads.Affinity, ...] = Field(
        (), description="CPUs of this machine that its vCPUs may run on; any if left out."
    )
    workload: Annotated[tuple[Annotated[Workload, ByKind()], ...], OneOrMany()] = Field(
        (), description="What it does: one workload, or a list of at most 8; nothing if left out."
    )
