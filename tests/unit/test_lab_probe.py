"""The probe reads a guest's records in whichever memory it runs."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from testbed.errors import LabError
from testbed.guest import layout, workloads
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.lab import probe
from testbed.lab.lines import LineSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

VCPUS = 2
WORKLOADS = (workloads.Oltp(100, 1 << 20), workloads.Writer("uniform", 10**6, 1 << 20))


class Memory:
    """A guest's memory with nobody in it."""

    def __init__(self, undo: ExitStack) -> None:
        self.fd = os.memfd_create("guest-test")
        undo.callback(os.close, self.fd)
        os.ftruncate(self.fd, layout.first_data_page(VCPUS) * SMALL_PAGE_BYTES)
        mapping = undo.enter_context(mmap.mmap(self.fd, 0))
        self.state = undo.enter_context(memoryview(mapping))
        self.place = (os.getpid(), self.fd)

    def beat(self, at_ns: int) -> None:
        for vcpu in range(VCPUS):
            layout.vcpu_words(self, vcpu)[layout.BEAT] = at_ns  # type: ignore[arg-type]

    def commit(self, vcpu: int, count: int, at_ns: int) -> None:
        words = layout.task_words(self, VCPUS, 0, vcpu)  # type: ignore[arg-type]
        words[layout.OPERATIONS] += count
        words[layout.LAST_AT] = at_ns
        words[layout.LATENCY + 3] += count


@pytest.fixture
def memories() -> Iterator[tuple[Memory, Memory]]:
    with ExitStack() as undo:
        yield Memory(undo), Memory(undo)


def test_it_goes_with_the_newest_heartbeat(memories: tuple[Memory, Memory]) -> None:
    source, destination = memories
    begin = time.monotonic_ns()
    one = probe.Probe(VCPUS, WORKLOADS, 10**9)
    one.follow([source.place])
    source.beat(begin)
    source.commit(0, 5, begin)
    one.sample()
    one.follow([source.place, destination.place])
    source.beat(begin + 10)
    source.commit(1, 2, begin + 10)
    destination.commit(0, 5, begin)  # an older copy, while memory is being sent
    destination.beat(begin)
    one.sample()
    destination.beat(begin + 20)  # it runs there
    destination.commit(1, 6, begin + 20)
    one.sample()
    one.follow([destination.place])
    said = one.report(begin, time.monotonic_ns())
    (oltp, writer) = said["guest"]["workloads"]
    assert oltp["operations"] == 11 - 5  # since the first sample
    assert (oltp["name"], oltp["operation"]) == ("oltp", "commits")
    assert (writer["name"], writer["operations"]) == ("uniform", 0)
    assert said["guest"]["samples"] == 4
    commits = next(line for line in said["series"] if line["name"] == "oltp commits")
    assert sum(value > 0 for value in commits["values"][:-1]) == 2


def test_what_was_felt_outlives_whoever_held_the_memory(memories: tuple[Memory, Memory]) -> None:
    """A VMX that dies in a migration takes neither the probe nor its samples with it."""
    source = memories[0]
    begin = time.monotonic_ns()
    source.beat(begin)
    place = (os.getpid(), os.dup(source.fd))
    one = probe.Probe(VCPUS, WORKLOADS, 10**9)
    one.follow([place])
    one.sample()
    os.close(place[1])
    one.follow([place])
    one.sample()
    assert one.report(begin, time.monotonic_ns())["guest"]["samples"] == 3


def test_more_samples_than_there_is_room_for_are_told_more_coarsely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "MOST_SAMPLES", 1000)
    recorder = probe.Recorder(VCPUS, WORKLOADS, 10)
    records = np.zeros((VCPUS * 3, layout.RECORD_WORDS), np.int64)
    for number in range(2000):
        records[VCPUS : 2 * VCPUS, layout.OPERATIONS] = number
        recorder.take(number * 10, records)
    samples = recorder.samples(0)
    assert len(samples) <= 1000
    assert samples.interval_ns >= 20
    assert samples.at_ns[0] == 0
    assert samples.at_ns[-1] == 19990
    assert (samples.workloads[0].operations == samples.at_ns // 10 * VCPUS).all()


def test_a_report_is_made_when_the_last_sample_filled_a_block_too() -> None:
    recorder = probe.Recorder(VCPUS, WORKLOADS, 10)
    for number in range(512):
        recorder.take(number, np.zeros((VCPUS * 3, layout.RECORD_WORDS), np.int64))
        if number % 256 == 255:
            assert len(recorder.samples(0)) == number + 1


def test_workloads_of_one_kind_are_told_apart() -> None:
    assert probe.names((workloads.Echo(), workloads.Web(), workloads.Echo(8))) == [
        "echo 1",
        "web",
        "echo 2",
    ]


def test_what_is_not_there_cannot_be_read(memories: tuple[Memory, Memory]) -> None:
    with pytest.raises(LabError, match="map the guest memory"):
        probe.StateView(os.getpid(), 9999, VCPUS, 1)
    with pytest.raises(LabError, match="map the guest memory"):
        probe.StateView(os.getpid(), memories[0].fd, 1000, 8)


def test_it_samples_until_it_is_asked(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = socket.socketpair()
    asked: dict[str, Any] = {"memory": memories[0].place, "vcpus": VCPUS, "interval_ns": 1_000_000}
    thread = threading.Thread(target=lambda: probe.run(theirs, workloads=WORKLOADS, **asked))
    begin = time.monotonic_ns()
    memories[0].beat(begin)
    with ours, theirs:
        thread.start()
        lines = LineSocket(ours)
        assert lines.receive(10) == {"event": "sampling"}
        time.sleep(0.1)
        lines.send({"command": "report", "from_ns": begin, "until_ns": time.monotonic_ns()})
        said = lines.receive(10)
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert not thread.is_alive()
    assert said is not None
    assert 10 <= said["guest"]["samples"] <= 1000
    # Nobody runs there: since the heartbeat nothing has been heard.
    assert said["guest"]["vcpus"][0]["longest_gap_ns"] >= 90_000_000
