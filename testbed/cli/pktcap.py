"""`testbed pktcap`: frames at an adapter, into a file that Wireshark opens."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from testbed.cli.measure import LAB
from testbed.cli.reach import duration_ns
from testbed.cli.stopping import stopped_by_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.measure.capture import Captured, CaptureTest, Tap
    from testbed.measure.pcapng import Direction, PcapngWriter

FILTERS = (
    ("srcip", "ADDRESS", "IP source: an address or a network."),
    ("dstip", "ADDRESS", "IP destination."),
    ("ip", "ADDRESS", "Either of them."),
    ("srcmac", "MAC", "Ethernet source."),
    ("dstmac", "MAC", "Ethernet destination."),
    ("mac", "MAC", "Either of them."),
    ("vlan", "VID", "VLAN of the tag; 0: untagged."),
    ("ethtype", "TYPE", "EtherType: 0x0806, arp, ipv4, ipv6, rarp, lldp."),
    ("proto", "NUMBER", "IP protocol: 0x06, tcp, udp, icmp, icmpv6."),
    ("tcpport", "PORT", "TCP source or destination."),
    ("srcport", "PORT", "TCP or UDP source."),
    ("dstport", "PORT", "TCP or UDP destination."),
)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, metavar, text in reversed(FILTERS):
        command = click.option(f"--{name}", metavar=metavar, help=text)(command)
    return command


@click.command("pktcap")
@click.argument("adapter", metavar="NODE/ADAPTER", required=False)
@click.option("-o", "--out", metavar="FILE", help="Write pcapng to this file; - is the output.")
@click.option("--stage", type=click.Choice(["before", "after"]), help="Of the port's IOChain.")
@click.option("--dir", "way", type=click.Choice(["in", "out", "both"]), default="both")
@click.option("-c", "--count", type=int, metavar="N", help="End after N frames.")
@click.option("--time", "duration", metavar="TIME", help="End after this long.")
@click.option("-s", "--snaplen", type=int, metavar="BYTES", help="Keep so much of a frame.")
@click.option("--decode", is_flag=True, help="Print a line for each frame (scapy's words).")
@click.option("-r", "--read", type=click.Path(path_type=Path), help="Decode this file instead.")
@_filters
@LAB
def pktcap_command(
    adapter: str | None,
    out: str | None,
    stage: Any,
    way: str,
    count: int | None,
    duration: str | None,
    snaplen: int | None,
    decode: bool,
    read: Path | None,
    lab: str | None,
    **filters: str | None,
) -> None:
    """Capture frames at NODE/ADAPTER: testbed pktcap esx01/vmnic0 -o a.pcapng --vlan 20.

    Without --stage at the adapter itself: what it received and sent. With it at the switch port
    that the adapter is or is plugged into: in is what the port gets from there, before or after
    its IOChain. Filters are pktcap-uw's; all must match. Ctrl-C ends a capture well.
    """
    from testbed.errors import InputError
    from testbed.lab.capture_point import capture_point, taps
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root
    from testbed.measure.capture import CaptureTest
    from testbed.measure.capture_filter import parse

    if read is not None:
        _print_file(read)
        return
    if adapter is None:
        raise InputError("pktcap: capture where? give NODE/ADAPTER, such as esx01/vmnic0")
    if out is None and not decode:
        raise InputError("pktcap: give -o FILE to keep the frames, --decode to print them, or both")
    if out == "-" and decode:
        raise InputError("pktcap: -o - and --decode both want standard output; give -o a file")
    test = CaptureTest(
        count=count,
        duration_ns=None if duration is None else duration_ns(duration, "--time"),
        snaplen_bytes=snaplen,
        frames=parse(dict(filters)),
    )
    require_root(f"pktcap {adapter}")
    _, journal = running_lab(lab)
    point = capture_point(journal.plan, adapter)
    direction: Direction | None = None if way == "both" else "in" if way == "in" else "out"
    with ExitStack() as stack:
        places = stack.enter_context(taps(point, stage, direction))
        file = stack.enter_context(_output(out))
        about = f"{stage} the IOChain" if stage else ""
        asked = " ".join(f"{name} {value}" for name, value in filters.items() if value)
        _run(places, test, file, (point.name, about, asked), decode=decode)


def _run(
    places: list[Tap],
    test: CaptureTest,
    file: IO[bytes] | None,
    names: tuple[str, str, str],
    *,
    decode: bool,
) -> None:
    import time

    from testbed.measure.capture import capture
    from testbed.measure.decode import Decoder

    writer = _writer(file, test, names) if file is not None else None
    decoder = Decoder() if decode else None
    kept = 0

    def keep(frame: Captured) -> None:
        nonlocal kept
        kept += 1
        if writer is not None:
            writer.packet(
                0, frame.unix_ns, frame.data, length=frame.length, direction=frame.direction
            )
        if decoder is not None:
            words = decoder.summary(frame.data)
            click.echo(_line(frame.unix_ns, frame.direction, frame.length, words))

    def ready() -> None:
        click.echo(f"capturing at {names[0]}; Ctrl-C ends it", err=True)

    with stopped_by_signals() as stop:
        counts = capture(places, test, keep, stop, ready)
    seen, dropped = sum(one.seen for one in counts), sum(one.dropped for one in counts)
    if writer is not None:
        writer.statistics(0, time.time_ns(), seen, dropped)
    click.echo(f"{kept} frames captured, {seen} seen, {dropped} dropped by the kernel", err=True)


def _writer(file: IO[bytes], test: CaptureTest, names: tuple[str, str, str]) -> PcapngWriter:
    from testbed import __version__
    from testbed.measure.pcapng import Interface, PcapngWriter

    name, about, asked = names
    writer = PcapngWriter(file, f"testbed {__version__}")
    writer.add_interface(Interface(name, about, test.snaplen_bytes or 0, asked))
    return writer


@contextmanager
def _output(out: str | None) -> Iterator[IO[bytes] | None]:
    from testbed.errors import InputError

    if out is None:
        yield None
    elif out == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        try:
            file = Path(out).open("wb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise InputError(f"write {out}: {error.strerror}; give -o another file") from error
        with file:
            yield file


def _print_file(path: Path) -> None:
    from testbed.measure.decode import Decoder

    for one in Decoder().read(path):
        click.echo(_line(one.unix_ns, one.direction, one.length, one.summary))


def _line(unix_ns: int, direction: str, length: int, summary: str) -> str:
    import time

    seconds, nanoseconds = divmod(unix_ns, 10**9)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{clock}.{nanoseconds:09} {direction:3} {length:5} {summary}"
