"""Each end proves that it knows the secret, and whoever can't is told nothing and costs little."""

from __future__ import annotations

import hmac
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.guest.specification import GuestSpec
from testbed.migration import handshake
from testbed.migration.handshake import ANSWER_BYTES, HELLO_BYTES, Answering, Offering
from testbed.migration.specification import MigrationSpec, StreamSpec

SECRET = bytes(range(32))
STREAM = StreamSpec("10.0.0.1", "10.0.0.2")


def specification(**changes):
    fields = {
        "migration_id": 1257624621919023,
        "secret": SECRET,
        "guest": GuestSpec("vm", 1 << 20, 1),
        "source_address": "10.0.0.1",
        "destination_address": "10.0.0.2",
        "streams": (STREAM,) * 3,
    }
    return MigrationSpec(**{**fields, **changes})


SPEC = specification()


def expecting(*specs):
    return {spec.migration_id: spec for spec in specs or (SPEC,)}


def shake(offering, answering, change=lambda _, message: message):
    """Carry messages to and fro until one end has nothing to say; returns them all.

    `change(n, message)` is what becomes of the n-th on its way.
    """
    said = []
    ends, message = (answering, offering), offering.hello
    while message:
        said.append(message)
        message = ends[(len(said) - 1) % 2].feed(change(len(said) - 1, message))
    return said


@given(st.integers(0, 2), st.integers(1, 40))
def test_ends_that_know_the_secret_agree_however_the_bytes_come(number, piece):
    offering, answering = Offering(SPEC, number), Answering(expecting())
    message, to, other = offering.hello, answering, offering
    while message:
        assert to.wants == len(message)
        answers = [
            to.feed(message[first : first + piece]) for first in range(0, len(message), piece)
        ]
        assert answers[:-1] == [b""] * (len(answers) - 1)
        message, to, other = answers[-1], other, to
    assert offering.done
    assert answering.done
    assert (answering.spec, answering.number) == (SPEC, number)
    assert offering.wants == answering.wants == 0
    assert offering.keys == answering.keys
    assert offering.refused == answering.refused == ""


def test_no_secret_crosses_the_wire_and_every_message_and_key_differs_each_time():
    seen = set()
    for number in (0, 1, 2, 0):
        offering, answering = Offering(SPEC, number), Answering(expecting())
        said = shake(offering, answering)
        assert [len(message) for message in said] == [HELLO_BYTES] + [ANSWER_BYTES] * 3
        keys = offering.keys
        for text in (SECRET, keys.to_destination, keys.to_source):
            assert text[:8] not in b"".join(said)
        for one in (*said, keys.to_destination, keys.to_source):
            assert one not in seen
            seen.add(one)
        assert repr(keys) == "Keys()"


def test_of_several_migrations_the_one_that_is_named_is_found():
    other = specification(migration_id=7, secret=bytes(32))
    answering = Answering(expecting(SPEC, other))
    shake(Offering(other, 1), answering)
    assert answering.spec is other
    assert answering.done


WRONG = {
    "another secret": specification(secret=bytes(32)),
    "a secret with one bit changed": specification(secret=bytes((1, *SECRET[1:]))),
    "another migration": specification(migration_id=1257624621919024),
    "more memory": specification(guest=GuestSpec("vm", 2 << 20, 1)),
    "fewer streams": specification(streams=(STREAM,) * 2),
    "encrypted": specification(encrypted=True),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_source_with_another_specification_gets_not_a_byte(wrong):
    answering = Answering(expecting())
    assert answering.feed(Offering(wrong, 0).hello) == b""
    assert answering.refused
    assert not answering.done
    assert answering.keys is None
    assert answering.feed(Offering(SPEC, 0).hello) == b""


def test_a_destination_without_the_secret_is_refused():
    """It may answer any HELLO by a nonce of its own, but has nothing to answer the proof by."""
    offering = Offering(SPEC, 0)
    proof = offering.feed(b"TMVc" + bytes(32))
    assert len(proof) == ANSWER_BYTES
    for answer in (b"TMVa" + bytes(32), b"TMVa" + proof[4:]):
        end = Offering(SPEC, 0, bytes(range(32)))
        end.feed(b"TMVc" + bytes(32))
        assert end.feed(answer) == b""
        assert "secret" in end.refused
        assert not end.done


def test_what_was_recorded_is_worth_nothing_another_time():
    recorded = shake(Offering(SPEC, 0), Answering(expecting()))
    answering = Answering(expecting())
    fresh = answering.feed(recorded[0])
    assert len(fresh) == ANSWER_BYTES
    assert fresh != recorded[1]
    assert (answering.spec, answering.number) == (None, -1)
    assert answering.feed(recorded[2]) == b""
    assert "replay" in answering.refused
    offering = Offering(SPEC, 0)
    assert offering.feed(recorded[1])
    assert offering.feed(recorded[3]) == b""
    assert offering.refused


def test_a_proof_for_one_stream_is_none_for_another():
    """Whoever sits between them can't have stream 0's connection taken for stream 1's."""
    one, other = Offering(SPEC, 0), Offering(SPEC, 1)
    answering = Answering(expecting())
    challenge = answering.feed(one.hello)
    assert answering.feed(other.feed(challenge)) == b""
    assert answering.refused


@given(st.integers(0, 3), st.data())
def test_a_message_that_was_changed_on_its_way_is_refused(number, data):
    offering, answering = Offering(SPEC, 1), Answering(expecting())

    def change(n, message):
        if n != number:
            return message
        at = data.draw(st.integers(0, len(message) - 1))
        bit = 1 << data.draw(st.integers(0, 7))
        return message[:at] + bytes((message[at] ^ bit,)) + message[at + 1 :]

    said = shake(offering, answering, change)
    assert offering.refused or answering.refused
    assert not offering.done
    assert answering.done == (number == 3)  # all that it had to hear was right
    assert len(said) <= (1, 3, 3, 4)[number]


@given(st.integers(0, 3), st.data())
def test_a_message_that_was_cut_short_is_waited_for_and_answered_by_nothing(number, data):
    offering, answering = Offering(SPEC, 1), Answering(expecting())

    def change(n, message):
        return message[: data.draw(st.integers(0, len(message) - 1))] if n == number else message

    shake(offering, answering, change)
    end = offering if number % 2 else answering
    assert not end.done
    assert not end.refused
    assert 0 < end.wants <= HELLO_BYTES


@given(st.integers(0, 3), st.binary(min_size=1, max_size=100))
def test_more_than_is_wanted_is_out_of_turn(number, more):
    offering, answering = Offering(SPEC, 1), Answering(expecting())
    shake(offering, answering, lambda n, message: message + more if n == number else message)
    end = offering if number % 2 else answering
    assert "out of turn" in end.refused
    assert not end.done
    assert end.wants == 0


@pytest.mark.parametrize("first", [b"TMVc", b"TMVp", b"TMVa", b"GET ", bytes(4), b"\xff" * 4])
def test_another_message_first_is_refused(first):
    answering = Answering(expecting())
    assert answering.feed(first + bytes(HELLO_BYTES - 4)) == b""
    assert answering.refused
    if first != b"TMVc":
        offering = Offering(SPEC, 0)
        assert offering.feed(first + bytes(ANSWER_BYTES - 4)) == b""
        assert offering.refused


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_garbage_is_answered_by_nothing_and_kept_by_nobody(pieces):
    answering, offering = Answering(expecting()), Offering(SPEC, 0)
    for piece in pieces:
        assert answering.feed(piece) == b""
        offering.feed(piece)
    for end in (answering, offering):
        assert not end.done
        assert len(end._heard) < HELLO_BYTES
    assert bool(answering.refused) == (sum(map(len, pieces)) >= HELLO_BYTES)


def test_a_stream_beyond_the_last_is_nobodys():
    with pytest.raises(ValueError, match="stream 3 of 3"):
        Offering(SPEC, 3)
    more = replace(SPEC, streams=(STREAM,) * 4)
    hello = Offering(more, 3, bytes(range(32))).hello
    body = hello[:24].replace((4).to_bytes(4, "little"), (3).to_bytes(4, "little"))
    forged = body + hello[24 : HELLO_BYTES - 32]
    answering = Answering(expecting())
    assert answering.feed(forged + handshake._hello_proof(SECRET, forged)) == b""
    assert "stream 3" in answering.refused


@pytest.mark.parametrize(
    ("key", "salt", "info", "size", "wanted"),
    [
        (
            b"\x0b" * 22,
            bytes(range(13)),
            bytes(range(0xF0, 0xFA)),
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            b"\x0b" * 22,
            bytes(32),
            b"",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["A.1", "A.3"],
)
def test_keys_are_derived_as_rfc_5869_says(key, salt, info, size, wanted):
    extracted = hmac.digest(salt, key, "sha256")
    assert handshake._expand(extracted, info, size).hex() == wanted
