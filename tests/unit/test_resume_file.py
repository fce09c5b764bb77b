"""The Quick Resume file carries what was put in and nothing else, however its writes end."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import KernelError
from testbed.guest.specification import GuestSpec
from testbed.migration import resume_file
from testbed.migration.resume_file import FILE_BYTES, SLOTS, FileSilentError, ResumeFile, State
from testbed.migration.resume_rings import Ring
from testbed.migration.specification import MigrationSpec

SPEC = MigrationSpec(1, secrets.token_bytes(32), GuestSpec("vm", 4 << 20, 1), "::1", "::2")


class Disk:
    """A file in which writes come in parts, and only when `settle` is called."""

    def __init__(self, size):
        self.data = bytearray(size)
        self.waiting = []

    def read(self, size, offset):
        return bytes(self.data[offset : offset + size])

    def write(self, data, offset):
        self.waiting += [(offset + n, data[n : n + 7]) for n in range(0, len(data), 7)]

    def settle(self, order=None, share=1.0):
        parts, self.waiting = self.waiting, []
        parts = [parts[n] for n in order] if order else parts
        keep = round(len(parts) * share)
        for offset, part in parts[:keep]:
            self.data[offset : offset + len(part)] = part
        self.waiting = parts[keep:]


BODIES = st.lists(st.binary(max_size=40), min_size=1, max_size=6)


@settings(max_examples=30)
@given(st.lists(BODIES, max_size=4), st.booleans(), st.data())
def test_a_record_is_read_whole_or_not_at_all(batches, encrypted, data):
    """Torn writes, in any order: what is read of number n is what was written as number n."""
    disk = Disk(4000)
    ring = Ring(disk, 100, 6, 40, name="answers", secret=b"s", encrypted=encrypted)
    first, all_bodies = 0, []
    for bodies in batches:
        ring.put(first, [(7, body) for body in bodies])
        all_bodies += bodies
        order = data.draw(st.permutations(range(len(disk.waiting))))
        disk.settle(order, data.draw(st.floats(0, 1)))
        for number in range(len(all_bodies) + 3):
            found = ring.get(number)
            assert found is None or found == (7, all_bodies[number])
        disk.settle()
        first += len(bodies)
        assert ring.get(first - 1) == (7, all_bodies[-1])
        assert ring.get(first - 1 - 6) is None  # overwritten, or never there
    assert not any(disk.data[:100] + disk.data[ring.end :])


@given(st.booleans(), st.data())
def test_bytes_that_change_are_noticed(encrypted, data):
    disk = Disk(500)
    ring = Ring(disk, 0, 2, 40, name="answers", secret=b"s", encrypted=encrypted)
    ring.put(0, [(7, b"content"), (8, b"")])
    disk.settle()
    place = data.draw(st.integers(0, ring.end - 1))
    disk.data[place] ^= 1 << data.draw(st.integers(0, 7))
    found = [ring.get(0), ring.get(1)]
    assert all(
        one in {None, record}
        for one, record in zip(found, ((7, b"content"), (8, b"")), strict=True)
    )
    assert None in found or not _in_record(place, ring)


def _in_record(place, ring):
    slot_bytes = ring.end // 2
    slot, at = divmod(place, slot_bytes)
    return at < slot_bytes - 40 + (7, 0)[slot]


def test_records_of_others_are_none():
    """Of another ring, another migration, or replayed from an earlier round."""
    disk = Disk(1000)
    ours = Ring(disk, 0, 2, 40, name="answers", secret=b"s")
    ours.put(0, [(7, b"old")])
    disk.settle()
    old = bytes(disk.data)
    for other in ({"name": "requests", "secret": b"s"}, {"name": "answers", "secret": b"t"}):
        Ring(disk, 0, 2, 40, **other).put(0, [(9, b"forged")])
        disk.settle()
        assert ours.get(0) is None
    ours.put(2, [(8, b"new")])
    disk.settle()
    disk.data[:] = old
    assert ours.get(2) is None


def test_what_an_encrypted_migration_writes_tells_nothing(tmp_path):
    path, page = tmp_path / "vm.resume", b"secret" * 600
    for encrypted in (False, True):
        spec = replace(SPEC, encrypted=encrypted)
        with ResumeFile.create(str(path), spec) as source, ResumeFile.open(str(path), spec) as end:
            end.request([5])
            source.answer([(number, page) for number in source.requests()])
            assert (b"secretsecret" in path.read_bytes()) == (not encrypted)
            assert list(end.answers()) == [(5, page)]


@pytest.fixture
def ends(tmp_path):
    path = str(tmp_path / "vm.resume")
    with ResumeFile.create(path, SPEC) as source, ResumeFile.open(path, SPEC) as destination:
        yield source, destination


def test_a_couple_of_megabytes(ends):
    """vmotion-facts.md, row 28."""
    found = Path(ends[0].path).stat()
    assert found.st_size == FILE_BYTES
    assert 1_900_000 < FILE_BYTES < 2_100_000
    assert found.st_blocks * 512 >= FILE_BYTES
    assert found.st_mode & 0o777 == 0o600


@settings(max_examples=10)
@given(steps=st.lists(st.tuples(st.integers(0, SLOTS), st.integers(0, SLOTS)), max_size=8))
def test_every_request_is_answered_in_order(tmp_path_factory, steps):
    path = str(tmp_path_factory.mktemp("file") / "vm.resume")
    with ResumeFile.create(path, SPEC) as source, ResumeFile.open(path, SPEC) as destination:
        asked, heard, answered, backlog = 0, [], [], []
        for more, serve in [*steps, (0, SLOTS), (0, SLOTS)]:
            count = min(more, SLOTS - destination.outstanding)
            destination.request(range(asked, asked + count))
            asked += count
            backlog += source.requests()
            now, backlog = backlog[:serve], backlog[serve:]
            source.answer([(page, page.to_bytes(8, "little") * 512) for page in now])
            heard += now
            for page, content in destination.answers():
                assert content == page.to_bytes(8, "little") * 512
                answered.append(page)
        assert heard == answered == list(range(asked))
        assert destination.outstanding == 0


def test_more_than_the_slots_is_refused(ends):
    ends[1].request(range(SLOTS))
    with pytest.raises(ValueError, match="480 are outstanding"):
        ends[1].request([1])


def test_ends_hear_each_other(ends, monkeypatch):
    source, destination = ends
    assert source.peer().state is destination.peer().state is State.READY
    destination.fall_back()
    assert source.peer().state is State.FALLEN_BACK
    source.tell(State.FAILED, b"why" * 2000)
    assert destination.peer().body.startswith(b"whywhy")
    now = [0]
    monkeypatch.setattr(resume_file.time, "monotonic_ns", lambda: now[0])
    source.fall_back()
    destination.fall_back()
    for now[0] in range(0, 60 * 10**9, SPEC.timeout_ns // 3):
        source.live()
        assert destination.live().state is State.FALLEN_BACK
    now[0] += SPEC.timeout_ns + 1
    with pytest.raises(FileSilentError, match=r"nothing was written to .* for 20 s"):
        destination.live()


def test_a_source_finds_out_that_the_guest_runs(ends, monkeypatch):
    source, destination = ends
    monkeypatch.setattr(resume_file, "_RUNNING_NS", 10_000_000)
    assert source.said_running() is None
    destination.tell(State.RUNNING, b"since then")
    assert source.said_running() == b"since then"
    destination.fall_back()  # which it may do before the source looks
    assert source.said_running() == b"since then"


def test_files_that_are_not_this_migrations_are_refused(tmp_path):
    path = tmp_path / "vm.resume"
    with pytest.raises(KernelError, match="No such file"):
        ResumeFile.open(str(path), SPEC)
    with ResumeFile.create(str(path), SPEC):
        with pytest.raises(KernelError, match="File exists"):
            ResumeFile.create(str(path), SPEC)
        with pytest.raises(KernelError, match="has written nothing there"):
            ResumeFile.open(str(path), replace(SPEC, secret=secrets.token_bytes(32)))
    assert not path.exists()
    path.symlink_to("/etc/hostname")
    with pytest.raises(KernelError, match="symbolic link"):
        ResumeFile.open(str(path), SPEC)


def test_both_ends_may_remove_it(ends):
    source, destination = ends
    destination.close()
    source.tell(State.WHOLE)
    source.close()
    assert not Path(source.path).exists()
