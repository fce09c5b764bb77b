"""Port 8000 and strangers: they get nothing, cost little, and what they came for goes on."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Writer
from testbed.migration.handshake import ANSWER_BYTES, HELLO_BYTES, Answering, Offering
from testbed.migration.phase import MigrationFailed, Phase
from testbed.migration.specification import StreamSpec
from tests.kernel import migration_pair
from tests.kernel.migration_pair import A, B, destination, joined, source, starting

pytestmark = pytest.mark.root

MIB = 1 << 20
# Slow enough that no path is too busy for it.
GUEST = GuestSpec("vm", 64 * MIB, 2, (Writer("uniform", 4 * 10**6, 8 * MIB),), seed=11)


@pytest.fixture(scope="module")
def namespaces():
    with joined() as names:
        yield names


@pytest.fixture
def start(namespaces):
    with starting(namespaces) as at:
        yield at


def specification(**changes):
    return migration_pair.specification(guest=GUEST, switchover_goal_ns=500_000_000, **changes)


def runs_on_at_source(told):
    """That a migration ended before it began, with its guest as it was."""
    kind, (error, phase, _, running, advanced, cuts) = told
    return (kind, error, phase, running, advanced, cuts) == (
        *("end", MigrationFailed, Phase.CONNECT),
        *(True, True, []),
    )


def connected():
    return socket.create_connection((B, 8000), 5)


def answered(*messages):
    """What port 8000 says to these, each sent when the one before has been answered, or refused."""
    heard = b""
    with connected() as sock:
        for message in messages:
            with suppress(ConnectionError):  # it has refused in the middle of it
                sock.sendall(message)
                heard += sock.recv(1 << 16)
    return heard


def recorded(spec):
    """A handshake of this migration that somebody has listened to: what its source said."""
    offering, answering = Offering(spec, 0), Answering({spec.migration_id: spec})
    challenge = answering.feed(offering.hello)
    proof = offering.feed(challenge)
    assert offering.feed(answering.feed(proof)) == b""
    return offering.hello, proof


def rss_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_strangers_learn_nothing_and_the_migration_goes_on(start):
    """One after the other, then many who keep silent, and then the source comes."""
    spec = specification(streams=(StreamSpec(A, B),) * 2)
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()
    before = rss_bytes(there.pid)
    hello, proof = recorded(spec)

    def strangers(tell, told):
        liar = replace(spec, secret=os.urandom(32))
        said = {
            "wrong secret": answered(Offering(liar, 0).hello),
            "wrong migration": answered(Offering(replace(spec, migration_id=7), 0).hello),
            "other memory": answered(
                Offering(replace(spec, guest=replace(spec.guest, memory_bytes=MIB)), 0).hello
            ),
            "other streams": answered(Offering(replace(spec, streams=()), 0).hello),
            "a proof first": answered(proof + bytes(HELLO_BYTES)),
            "garbage": answered(os.urandom(4096)),
            "another protocol": answered(b"GET / HTTP/1.1\r\nHost: esx02\r\n\r\n" * 9),
            "oversized": answered(bytes(4 * MIB)),
        }
        for name, messages in {
            "replayed": (hello, proof),
            "replayed, no proof": (hello, os.urandom(ANSWER_BYTES)),
            "replayed, oversized": (hello, bytes(4 * MIB)),
        }.items():
            said[name] = answered(*messages)
        tell(said)
        with ExitStack() as undo:
            for part in (b"", hello[:-1], hello, hello + proof[:-1]):
                for _ in range(12):  # more than may be half-way through at once
                    undo.enter_context(connected()).sendall(part)
            tell("silent")
            told.recv(10)

    stranger = start(0, strangers)
    said = stranger.told()
    challenges = [said.pop(name) for name in list(said) if name.startswith("replayed")]
    assert set(said.values()) == {b""}, said
    # Whoever replays a HELLO is asked for a proof, by a number never used before, and no more.
    assert {len(one) for one in challenges} == {ANSWER_BYTES}
    assert len(set(challenges)) == len(challenges)
    assert stranger.told() == "silent"
    assert rss_bytes(there.pid) - before < 4 * MIB
    here.go()
    report, *_ = told = here.told()
    assert len(getattr(report, "streams", ())) == 2, told
    there.told()


def test_strangers_do_not_keep_a_destination_waiting(start):
    spec = specification(timeout_ns=1_500_000_000)
    there = start(1, destination(spec))
    there.told()

    def knocks(tell, told):
        ended = time.monotonic() + 10
        with suppress(ConnectionError):
            while time.monotonic() < ended:
                answered(os.urandom(HELLO_BYTES))
        tell(time.monotonic() < ended)

    stranger = start(0, knocks)
    kind, _, text = there.told(15)
    assert kind == "error"
    assert "did not come within 1.5 s" in text
    assert stranger.told() is True  # the port is closed by then


def test_a_source_with_the_wrong_secret_keeps_its_guest_and_the_right_one_still_comes(start):
    spec = specification()
    there = start(1, destination(spec))
    there.told()
    wrong = start(0, source(replace(spec, secret=os.urandom(32))))
    wrong.told()
    wrong.go()
    assert runs_on_at_source(wrong.told())
    here = start(0, source(spec))
    here.told()
    here.go()
    report, *_ = here.told()
    assert report.iterations
    there.told()


ANSWERS = {
    "silence": lambda: (),
    "garbage": lambda: (os.urandom(ANSWER_BYTES),),
    "a challenge and garbage": lambda: (b"TMVc" + os.urandom(32), b"TMVa" + os.urandom(32)),
    "oversized": lambda: (b"TMVc" + os.urandom(32), bytes(MIB)),
}


@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
def test_a_stranger_who_listens_gets_no_page(start, answers):
    """It gets a HELLO and a proof, which tell it nothing, and the guest runs on."""
    spec = specification(timeout_ns=1_000_000_000)

    def pretends(tell, told):
        heard = b""
        with socket.create_server((B, 8000)) as listener:
            tell("ready")
            with listener.accept()[0] as sock:
                sock.settimeout(5)
                with suppress(ConnectionError):
                    for answer in answers():
                        heard += sock.recv(1 << 16)
                        sock.sendall(answer)
                    while data := sock.recv(1 << 16):
                        heard += data
        tell(heard)

    there, here = start(1, pretends), start(0, source(spec))
    assert there.told() == "ready"
    here.told()
    here.go()
    assert runs_on_at_source(here.told())
    heard = there.told()
    assert len(heard) in {HELLO_BYTES, HELLO_BYTES + ANSWER_BYTES}
    assert spec.secret[:8] not in heard
    assert Answering({spec.migration_id: spec}).feed(heard[:HELLO_BYTES])
