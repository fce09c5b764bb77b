"""vCPU 0's end of the network, with nobody but the test at the rings' other end."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.content import PART_HEADER, PART_NS, content, part_bytes, part_content
from testbed.guest import layout
from testbed.guest.nic import records
from testbed.guest.nic.bulk import LATE_NS
from testbed.guest.nic.echoes import checksum
from testbed.guest.nic.records import CLOSE, DATA, DIALLED, ECHO, ENDED, LOST, OPENED, SENT
from testbed.guest.nic.service import NicTask
from testbed.guest.specification import GuestSpec
from testbed.guest.task import NEVER_NS, TaskContext
from testbed.guest.workloads import Bulk, Echo, Media, Ping, Sink, Web, of_network

if TYPE_CHECKING:
    from testbed.guest.nic.rings import Record

WEB, MEDIA, ECHO_PORT = 80, 554, 7
FILE_BYTES = 100_001
LONG_NS = 10**15  # a clock that the test sets, far from the real one: no budget runs out


class Memory:
    def __init__(self) -> None:
        self.state = memoryview(bytearray(layout.first_data_page(1) * 4096))


class End:
    """The NIC process's end: what it puts, and what it takes."""

    def __init__(self, spec: GuestSpec | None = None) -> None:
        workloads = (Web(file_bytes=FILE_BYTES), Media(rate_bps=10**6), Echo(), Ping())
        self.spec = spec or GuestSpec("vm", 1 << 22, 1, workloads, seed=3)
        self.memory = Memory()
        self.kicks = 0
        self.pages = records.divide(layout.nic_bytes(self.memory, 1))  # type: ignore[arg-type]
        self.begin_anew()

    def begin_anew(self) -> None:
        """As after a move: another process, which knows but the memory."""
        words = [
            layout.task_words(self.memory, 1, number, 0)  # type: ignore[arg-type]
            for number in range(len(self.spec.workloads))
        ]
        context = TaskContext(
            self.spec, 0, 0, self.memory, words[0], 0, 0, 0, lambda _: None, self.kick  # type: ignore[arg-type]
        )  # fmt: skip
        self.task = NicTask(context, of_network(self.spec.workloads), words)
        self.task.start(1)

    def kick(self) -> None:
        self.kicks += 1

    def put(self, kind: int, connection: int = 0, payload: bytes = b"", at_ns: int = 1) -> None:
        assert self.pages.received.put(kind, connection, at_ns, payload)

    def open(self, port: int, connection: int = 0) -> None:
        self.put(OPENED, connection, port.to_bytes(4, "little"))

    def take(self, *, report: bool = True) -> list[Record]:
        """Steps and what comes of them, until nothing does; the socket takes all at once."""
        found: list[Record] = []
        while True:
            self.task.step(LONG_NS)
            before = len(found)
            while (record := self.pages.to_send.first()) is not None:
                self.pages.to_send.drop(record)
                found.append(record)
                if report and record.kind == DATA:
                    count = len(record.payload).to_bytes(8, "little")
                    self.put(SENT, record.connection, count)
            if len(found) == before and not self.pages.received.waiting():
                return found

    def says(self, connection: int = 0) -> bytes:
        return b"".join(one.payload for one in self.take() if one[:2] == (DATA, connection))

    def counted(self, task: int) -> dict[str, int]:
        row = layout.task_records(self.memory.state, 1, len(self.spec.workloads))[task, 0]
        return {name: int(row[name]) for name in ("operations", "bytes", "last_at_ns")}


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), max_size=30), st.booleans())
def test_a_request_in_any_pieces_and_across_moves(sizes: list[int], moves: bool) -> None:
    request = b"GET /12 HTTP/1.1\r\nHost: 10.0.0.1\r\nUser-Agent: " + b"x" * 90 + b"\r\n\r\n"
    end = End()
    end.open(WEB)
    for size in [*sizes, 1000]:
        piece, request = request[:size], request[size:]
        if piece:
            end.put(DATA, 0, piece)
        if request:
            assert end.take() == []
        if moves:
            end.begin_anew()
    assert body(end.says()) == content(3, 12, 0, FILE_BYTES)
    assert end.counted(0)["operations"] == 1
    assert end.counted(0)["bytes"] == FILE_BYTES


def test_a_download_goes_on_where_the_memory_says() -> None:
    end = End()
    end.open(WEB)
    end.put(DATA, 0, b"GET /1 HTTP/1.1\r\n\r\n")
    came = b""
    while len(body(came)) < FILE_BYTES:
        end.task.step(LONG_NS)
        record = end.pages.to_send.first()
        assert record is not None
        end.pages.to_send.drop(record)
        came += record.payload
        end.put(SENT, 0, len(record.payload).to_bytes(8, "little"))
        end.begin_anew()
    assert body(came) == content(3, 1, 0, FILE_BYTES)


def test_keep_alive_and_close() -> None:
    end = End()
    end.open(WEB)
    for number in (1, 2):
        end.put(DATA, 0, f"GET /{number} HTTP/1.1\r\n\r\n".encode())
        assert body(end.says()) == content(3, number, 0, FILE_BYTES)
    end.put(DATA, 0, b"GET /nothing HTTP/1.1\r\n\r\n")
    assert end.says().startswith(b"HTTP/1.1 404 ")
    end.put(DATA, 0, b"HEAD /3 HTTP/1.1\r\nConnection: close\r\n\r\n")
    taken = end.take()
    assert f"Content-Length: {FILE_BYTES}".encode() in taken[0].payload
    assert [one.kind for one in taken] == [DATA, CLOSE]
    assert end.counted(0)["operations"] == 4


def test_a_request_ahead_of_its_time_ends_the_connection_after_the_answer() -> None:
    end = End()
    end.open(WEB)
    end.put(DATA, 0, b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
    taken = end.take()
    said = b"".join(one.payload for one in taken if one.kind == DATA)
    assert body(said) == content(3, 1, 0, FILE_BYTES)
    assert taken[-1].kind == CLOSE
    assert [one.kind for one in taken].count(CLOSE) == 1


@pytest.mark.parametrize("last", [ENDED, LOST])
@pytest.mark.parametrize("port", [WEB, MEDIA, ECHO_PORT, 9999])
def test_each_connection_is_closed_once(port: int, last: int) -> None:
    """So its number is free again, whoever closes it, also one that nobody serves."""
    end = End()
    for _ in range(3):
        end.open(port, 5)
        early = end.take() if port != MEDIA else []
        end.put(last, 5)
        taken = early + end.take()
        assert [one[:2] for one in taken if one.kind == CLOSE] == [(CLOSE, 5)]


def test_what_is_under_way_is_bounded() -> None:
    """A socket that takes nothing holds up its own connection, and no other."""
    end = End()
    web = Web(file_bytes=10**8)
    end = End(GuestSpec("vm", 1 << 22, 1, (web, Echo()), seed=3))
    end.open(WEB)
    end.put(DATA, 0, b"GET /1 HTTP/1.1\r\n\r\n")
    under_way = sum(len(one.payload) for one in end.take(report=False))
    assert 200_000 < under_way <= 262_144
    assert end.task.step(LONG_NS) == NEVER_NS
    end.open(ECHO_PORT, 1)
    end.put(DATA, 1, b"hello")
    assert end.says(1) == b"hello"
    end.put(SENT, 0, (100_000).to_bytes(8, "little"))
    assert sum(len(one.payload) for one in end.take(report=False)) > 90_000


def test_downloads_that_fill_the_ring_leave_room_for_all() -> None:
    """Sockets that take all at once: each has a turn before one has its second."""
    end = End(GuestSpec("vm", 1 << 22, 1, (Web(file_bytes=10**8), Media()), seed=3))
    for number in range(6):
        end.open(WEB, number)
        end.put(DATA, number, b"GET /1 HTTP/1.1\r\n\r\n")
    end.open(MEDIA, 6)
    heard: dict[int, int] = dict.fromkeys(range(7), 0)
    for _ in range(12):
        end.task.step(LONG_NS)
        while (record := end.pages.to_send.first()) is not None:
            end.pages.to_send.drop(record)
            heard[record.connection] += len(record.payload)
            end.put(SENT, record.connection, len(record.payload).to_bytes(8, "little"))
    assert all(heard.values()), heard
    assert max(heard[number] for number in range(6)) < 3 * min(heard[n] for n in range(6))


def test_a_full_ring_is_waited_for_and_nothing_is_lost() -> None:
    end = End()
    end.open(ECHO_PORT)
    said = b""
    for number in range(30):
        piece = bytes([number]) * 5000
        while end.pages.received.room() < len(piece):
            end.task.step(LONG_NS)
            if end.pages.received.room() < len(piece):
                break
        if not end.pages.received.put(DATA, 0, 1, piece):
            break
        said += piece
    assert len(said) >= 100_000  # both rings are full
    end.task.step(LONG_NS)
    assert not end.task.pending()
    record = end.pages.to_send.first()
    assert record is not None
    end.pages.to_send.drop(record)
    assert end.task.pending()
    assert record.payload + end.says() == said


def test_a_media_stream_has_its_parts_when_they_are_due() -> None:
    end = End()
    size = part_bytes(10**6)
    assert size == 1250
    end.open(MEDIA)
    began, came = LONG_NS, b""
    now = began
    for step in (0, 0.5, 1, 2, 2.5, 7):
        now = int(began + step * PART_NS)
        came += media_at(end, now)
    assert len(came) == 8 * size
    for number in range(8):
        part = came[number * size : (number + 1) * size]
        assert PART_HEADER.unpack_from(part) == (number, began + number * PART_NS, size)
        assert part[PART_HEADER.size :] == part_content(3, number, 0, size - PART_HEADER.size)
    late = media_at(end, now + 2 * 10**9)  # nobody wants those of a second ago and more
    number, due_ns, _ = PART_HEADER.unpack_from(late)
    assert number == 207
    assert due_ns == began + 207 * PART_NS
    assert len(late) == size


def media_at(end: End, now_ns: int) -> bytes:
    """What a media service says at a time of the test's choice."""
    service = end.task._services[MEDIA]
    end.task._take(LONG_NS * 2)
    one = end.task._open[0]
    while service.due(one, now_ns) <= now_ns:
        service.send(one, 60_000, now_ns)
    found = b""
    while (record := end.pages.to_send.first()) is not None:
        end.pages.to_send.drop(record)
        found += record.payload
    return found


def test_echo_requests_are_answered_and_damaged_ones_are_not() -> None:
    end = End()
    envelope = struct.pack("<16s16sII", b"\1" * 16, b"\2" * 16, 0, 4)
    message = struct.pack("!BBHHH", 8, 0, 0, 77, 5) + b"payload"
    sound = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    end.put(ECHO, 0, envelope + sound[:-1] + b"x")
    assert end.take() == []
    end.put(ECHO, 0, envelope + sound)
    (answer,) = end.take()
    assert answer.kind == ECHO
    assert answer.payload[:40] == envelope
    reply = answer.payload[40:]
    assert reply[:2] == b"\0\0"
    assert reply[4:] == message[4:]
    assert checksum(reply) == 0
    assert end.counted(3)["operations"] == 1
    assert end.kicks >= 2


def test_it_is_told_apart_from_what_ran_before() -> None:
    """The NIC process knows by the epoch that these are the same connections' workloads."""
    end = End()
    before = end.pages.epoch[0]
    end.begin_anew()
    assert end.pages.epoch[0] == before != records.NO_EPOCH
    layout.forget_tasks(end.memory, 1)  # type: ignore[arg-type]
    assert end.pages.epoch[0] == records.NO_EPOCH


def bulk_end(rate_bps: int = 0) -> End:
    bulk = Bulk("10.0.0.2", rate_bps=rate_bps)
    end = End(GuestSpec("vm", 1 << 22, 1, (Echo(), bulk, Sink()), seed=3))
    end.open(DIALLED + 1)
    return end


def test_bulk_sends_as_much_as_it_may_until_nobody_takes_it() -> None:
    end = bulk_end()
    sent = sum(len(one.payload) for one in end.take(report=False))
    assert 200_000 < sent <= 262_144
    assert end.counted(1)["bytes"] == sent
    end.put(SENT, 0, (50_000).to_bytes(8, "little"))
    assert 40_000 < sum(len(one.payload) for one in end.take(report=False)) <= 62_144
    end.put(LOST)
    assert [one.kind for one in end.take()] == [CLOSE]
    end.open(DIALLED + 1)  # dialled again
    assert end.take(report=False)[0].kind == DATA


@given(st.integers(8_000, 10**9), st.lists(st.integers(1, 10**9), min_size=1, max_size=40))
def test_bulk_keeps_to_its_rate_in_every_interval(rate_bps: int, pauses_ns: list[int]) -> None:
    """Whenever the vCPU comes to it; each piece is let through in one go."""
    end = bulk_end(rate_bps)
    end.task._take(LONG_NS * 2)
    service, one = end.task._services[DIALLED + 1], end.task._open[0]
    now, sent, least = LONG_NS, 0.0, float("inf")
    for pause_ns in pauses_ns:
        while service.due(one, now) <= now:
            least = min(least, sent * 8e9 / rate_bps - now)
            service.send(one, 60_000, now)
            record = end.pages.to_send.first()
            assert record is not None
            end.pages.to_send.drop(record)
            sent += len(record.payload)
            piece_ns = len(record.payload) * 8e9 / rate_bps
            assert sent * 8e9 / rate_bps - now - least <= LATE_NS + 2 * piece_ns + 2
        now += pause_ns


def test_bulk_is_sent_by_the_workload_of_its_own_number_alone() -> None:
    end = bulk_end()
    end.open(DIALLED + 2, 7)
    assert [one[:2] for one in end.take(report=False) if one.connection == 7] == [(CLOSE, 7)]


def test_a_sink_counts_and_says_nothing() -> None:
    end = bulk_end()
    end.put(LOST)
    end.take()
    end.open(9, 1)
    end.put(DATA, 1, b"abc")
    end.put(DATA, 1, bytes(5000))
    assert end.take() == []
    assert end.counted(2)["bytes"] == 5003
    assert end.counted(2)["operations"] == 2
    end.put(ENDED, 1)
    assert [one.kind for one in end.take()] == [CLOSE]
