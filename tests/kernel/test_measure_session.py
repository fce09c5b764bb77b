"""Clients tell of what a server does wrong, and end when they are to."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from testbed.content import PART_HEADER, PART_NS, content, part_content
from testbed.errors import InputError, MeasurementError
from testbed.measure import session
from testbed.measure.endpoint import Endpoint, socket_in
from testbed.measure.tcp_session import SessionTest

pytestmark = [pytest.mark.root, pytest.mark.needs_program("ip")]
MS = 10**6
SEED = 5


@pytest.fixture(scope="module")
def netns():
    name = f"tb-session-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield f"/run/netns/{name}"
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def serve(netns):
    """A server that does something with the first who connects; gives port and ends."""
    with ExitStack() as undo:

        def start(talk):
            listener = socket_in(netns, socket.AF_INET, socket.SOCK_STREAM, 0)
            undo.callback(listener.close)
            listener.bind(("127.0.0.1", 0))
            listener.listen()

            def run():
                made, _ = listener.accept()
                with made, suppress(OSError):
                    made.settimeout(10)
                    talk(made)

            thread = threading.Thread(target=run)
            thread.start()
            undo.callback(thread.join)
            return listener.getsockname()[1]

        yield start


@pytest.fixture
def ends(netns):
    return Endpoint(netns, "127.0.0.1"), Endpoint(netns, "127.0.0.1")


def test_an_echo_with_a_wrong_byte_and_a_pause(serve, ends):
    def talk(made):
        got = 0
        while data := made.recv(1 << 16):
            if got < 640 <= got + len(data):
                time.sleep(0.3)
                data = bytes([data[0] ^ 1]) + data[1:]
            got += len(data)
            made.sendall(data)

    test = SessionTest(serve(talk), SEED, 800 * MS, 5 * MS)
    began_ns = time.monotonic_ns()
    found = session.echo(*ends, test)
    assert time.monotonic_ns() - began_ns < 8000 * MS
    assert found.wrong_bytes == 1
    assert 300 * MS <= found.longest_interruption.length_ns < 800 * MS
    assert found.broken is None
    assert found.answered == len(found.rtt) >= 20
    assert max(found.rtt.values) >= 300 * MS > min(found.rtt.values)
    # Messages went on being sent meanwhile, each with its own round trip.
    assert sum(rtt > 100 * MS for rtt in found.rtt.values) >= 5


def test_a_download_of_which_a_part_is_wrong(serve, ends):
    def talk(made):
        for number in range(2):
            made.recv(1 << 16)
            file = bytearray(content(SEED, number, 0, 300_000))
            if number:
                file[1000:1010] = bytes(255 - one for one in file[1000:1010])
            made.sendall(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 300000\r\n\r\n" + file[:150_000])
            time.sleep(0.2)
            made.sendall(file[150_000:])

    found = session.download(*ends, SessionTest(serve(talk), SEED, 5000 * MS))
    assert found.broken == "the VM closed the connection"
    assert (found.downloads, found.received_bytes, found.wrong_bytes) == (2, 600_000, 10)
    assert found.longest_gap.length_ns >= 200 * MS
    total = sum(value * 10 * MS / 8e9 for value in found.rate.values)
    assert 300_000 <= total <= 600_000  # the last grain isn't whole


def test_an_answer_that_is_none(serve, ends):
    def talk(made):
        made.recv(1 << 16)
        made.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")

    with pytest.raises(MeasurementError, match="404"):
        session.download(*ends, SessionTest(serve(talk), SEED, 5000 * MS))


def test_a_stream_with_a_part_late_one_missing_and_one_wrong(serve, ends):
    def talk(made):
        began = time.monotonic_ns()
        for number in (0, 1, 2, 4, 5):
            due = began + number * PART_NS
            time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
            if number == 5:
                time.sleep(0.2)
            body = part_content(SEED, number, 0, 1000)
            if number == 1:
                body = bytes(1000)
            made.sendall(PART_HEADER.pack(number, due, PART_HEADER.size + 1000) + body)

    found = session.media(*ends, SessionTest(serve(talk), SEED, 5000 * MS))
    assert (found.parts, found.missing) == (5, 1)
    assert 1 <= found.late <= 5
    assert 900 <= found.wrong_bytes <= 1000
    assert found.longest_gap.length_ns >= 200 * MS
    assert found.gaps.values[-1] >= 200 * MS


@pytest.mark.parametrize("client", [session.echo, session.download, session.media])
def test_it_ends_whatever_the_vm_does(serve, ends, client):
    ended = threading.Event()
    port = serve(lambda made: ended.wait(20))
    try:
        began_ns = time.monotonic_ns()
        found = client(*ends, SessionTest(port, SEED, 300 * MS))
        took_ns = time.monotonic_ns() - began_ns
    finally:
        ended.set()
    assert 300 * MS <= took_ns < 3000 * MS
    assert found.wrong_bytes == 0
    assert found.broken is None


def test_the_caller_may_end_it(serve, ends):
    stop = threading.Event()
    port = serve(lambda made: stop.wait(20))
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    began = time.monotonic()
    session.echo(*ends, SessionTest(port, SEED, 60 * 10**9), stop)
    timer.join()
    assert time.monotonic() - began < 6


def test_nobody_there(ends):
    with pytest.raises(MeasurementError, match=r"port 9: Connection refused; does the VM run"):
        session.echo(*ends, SessionTest(9))


def test_numbers_out_of_range():
    for wrong in ({"port": 0}, {"port": 80, "duration_ns": 0}, {"port": 80, "grain_ns": 10}):
        with pytest.raises(InputError, match=r"session .*: give "):
            SessionTest(**wrong)
