"""Rates from counters, and how ESXi's tools print ports."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.report.port_rates import ClassReading, Direction, PortReading, port_rates
from testbed.report.port_view import (
    HEADINGS,
    UPLINK,
    VM,
    VMKERNEL,
    Port,
    PortRow,
    cells,
    net_stats_list,
    table,
    text,
)

S = 10**9
counts = st.integers(0, 2**40)


def reading(at_ns: int, tx: Direction, rx: Direction | None = None, **more: Any) -> PortReading:
    return PortReading(at_ns, tx, rx or Direction(), **more)


def test_a_second_of_full_frames_is_a_gigabit() -> None:
    before = reading(5 * S, Direction(1000, 10**6, 5, 1), Direction(7, 700))
    after = reading(
        7 * S, Direction(2000 + 164_000, 250 * 10**6 + 10**6, 1005, 4), Direction(7, 700)
    )
    rates = port_rates(before, after)
    assert rates.interval_ns == 2 * S
    assert rates.tx.bits_per_s == 10**9
    assert rates.tx.packets_per_s == 82_500
    assert rates.tx.packet_bytes == pytest.approx(1515.15, abs=0.01)
    assert (rates.tx.dropped, rates.tx.errors) == (1000, 3)
    assert rates.tx.dropped_percent == pytest.approx(100 * 1000 / 166_000)
    assert (rates.rx.packets_per_s, rates.rx.packet_bytes, rates.rx.dropped_percent) == (0, 0, 0)


@given(counts, counts, counts, st.integers(1, 10**12))
def test_what_is_counted_is_rate_times_time(
    packets: int, size: int, dropped: int, interval_ns: int
) -> None:
    rates = port_rates(
        reading(1, Direction()), reading(1 + interval_ns, Direction(packets, size, dropped))
    ).tx
    assert rates.packets_per_s * interval_ns / S == pytest.approx(packets)
    assert rates.bits_per_s * interval_ns / S == pytest.approx(8 * size)
    assert 0 <= rates.dropped_percent <= 100


def test_a_port_made_anew_counts_from_zero() -> None:
    rates = port_rates(reading(0, Direction(100, 10_000)), reading(S, Direction(3, 300)))
    assert (rates.tx.packets_per_s, rates.tx.bits_per_s) == (3, 2400)


def test_classes_have_rates_of_their_own_and_new_ones_begin_at_zero() -> None:
    before = reading(0, Direction(), classes={"vmotion": ClassReading(10, 1000, 0)})
    now = {"vmotion": ClassReading(30, 3000, 20), "nfs": ClassReading(1, 100, 0)}
    rates = port_rates(before, reading(S, Direction(), classes=now))
    assert rates.classes["vmotion"].bits_per_s == 16_000
    assert rates.classes["vmotion"].dropped_percent == 50
    assert rates.classes["nfs"].packets_per_s == 1


def test_rates_need_time_to_pass() -> None:
    with pytest.raises(ValueError, match="different times"):
        port_rates(reading(1, Direction()), reading(1, Direction()))


# ---------------------------------------------------------------- as ESXi prints it

NIC = Port(33554434, UPLINK, 0, "vSwitch0", "00:50:56:01:02:03", "vmnic0")
VMK = Port(33554500, VMKERNEL, 0, "vSwitch0", "00:50:56:01:02:04", "vmk0")
DB = Port(33554501, VM, 9, "DSwitch", "00:50:56:01:02:05", "db01.eth0")


def test_net_stats_lists_as_on_esxi() -> None:
    assert net_stats_list([NIC, VMK, DB]).splitlines() == [
        "PortNum          Type SubType SwitchName       MACAddress         ClientName",
        "33554434            4       0 vSwitch0         00:50:56:01:02:03  vmnic0",
        "33554500            3       0 vSwitch0         00:50:56:01:02:04  vmk0",
        "33554501            5       9 DSwitch          00:50:56:01:02:05  db01.eth0",
    ]


def rows() -> list[PortRow]:
    now = reading(
        S,
        Direction(82_000, 125_000_000, 0),
        Direction(100, 6400, 100),
        classes={"vmotion": ClassReading(82_000, 125_000_000, 0)},
    )
    rates = port_rates(reading(0, Direction()), now)
    return [PortRow(NIC, rates), PortRow(VMK, rates, "vmnic0"), PortRow(DB, rates)]


def test_a_line_has_esxtop_s_columns_and_a_class_its_own_below() -> None:
    uplink, vmotion = cells(rows()[0])
    assert dict(zip(HEADINGS, uplink, strict=True)) == {
        "PORT-ID": "33554434",
        "USED-BY": "vmnic0",
        "TEAM-PNIC": "-",
        "DNAME": "vSwitch0",
        "PKTTX/s": "82000.00",
        "MbTX/s": "1000.00",
        "PSZTX": "1524",
        "PKTRX/s": "100.00",
        "MbRX/s": "0.05",
        "PSZRX": "64",
        "%DRPTX": "0.00",
        "%DRPRX": "50.00",
    }
    assert vmotion[1:7] == ("  vmotion", "", "", "82000.00", "1000.00", "1524")
    assert [cells(row)[0][2] for row in rows()] == ["-", "vmnic0", "?"]


def test_the_columns_stand_below_one_another() -> None:
    lines = text("esx01", rows()).splitlines()
    assert lines[0] == "esx01"
    assert len(lines) == 2 + 2 * 3
    for heading, value in (("PKTTX/s", "82000.00"), ("%DRPRX", "50.00"), ("PSZTX", "1524")):
        assert lines[1].index(heading) + len(heading) == lines[2].index(value) + len(value)
    assert lines[2].index("vmnic0") == lines[1].index("USED-BY")


def test_a_terminal_shows_every_host() -> None:
    from rich.console import Console

    console = Console(width=150, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(table([("esx01", rows()), ("esx02", rows())], "lab quickstart"))
    drawn = shown.get()
    assert drawn.startswith("lab quickstart")
    assert drawn.count("db01.eth0") == drawn.count("vmk0") == 2
