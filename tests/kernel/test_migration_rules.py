"""What a migration does with a guest or a path that is not as it should be, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.guest.machine import Guest
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Writer
from testbed.ledger import Ledger
from testbed.migration.destination import Destination, DestinationHooks
from testbed.migration.phase import MigrationFailed, MigrationLost, Phase
from testbed.migration.sdps import SdpsSpec
from testbed.migration.source import SourceHooks, migrate
from tests.kernel.migration_pair import (
    advances,
    destination,
    joined,
    run,
    slow,
    source,
    specification,
    starting,
)

pytestmark = pytest.mark.root

MIB = 1 << 20
BUSY = GuestSpec("vm", 24 * MIB, 2, (Writer("uniform", 100 * 10**6, 8 * MIB),), seed=11)
CALM = GuestSpec("vm", 24 * MIB, 2, (Writer("uniform", 4 * 10**5, 8 * MIB),), seed=11)


@pytest.fixture
def namespaces():
    with joined() as names:
        yield names


@pytest.fixture
def start(namespaces):
    with starting(namespaces) as at:
        yield at


def throttled(spec, sleep_ns):
    """A VMX whose guest an operator has throttled; what its vCPUs sleep when it is over."""

    def work(tell, told):
        with Guest.power_on(spec.guest) as guest:
            guest.throttle(sleep_ns, 1)
            tell("on")
            told.recv(10)
            report = failed = None
            try:
                report = migrate(guest, spec, SourceHooks())
            except MigrationFailed as error:
                failed = str(error)
            return report, failed, guest.throttles()

    return work


def test_sdps_lets_a_guest_converge_that_is_faster_than_the_path(start, namespaces):
    slow(namespaces)
    spec = specification(guest=BUSY, sdps=SdpsSpec())
    there, here = start(1, destination(spec)), start(0, throttled(spec, 1000))
    there.told()
    here.told()
    here.go()
    _, (report, failed, sleeps) = here.told(60)
    assert failed is None
    assert report.slowdowns
    for step in report.slowdowns[:1]:
        assert step.transmit_bytes_per_s < 1.3 * step.dirty_bytes_per_s
    assert max(step.sleep_ns_per_ms for step in report.slowdowns) > 0
    assert sleeps == [0, 1000]
    there.told()


def test_what_sdps_took_is_given_back_when_the_migration_fails(start, namespaces):
    slow(namespaces)
    spec = specification(guest=BUSY, sdps=SdpsSpec(longest_sleep_ns=100_000))
    there, here = start(1, destination(spec)), start(0, throttled(spec, 7_000))
    there.told()
    here.told()
    here.go()
    _, (_, failed, sleeps) = here.told(60)
    assert "does not converge" in failed
    assert sleeps == [0, 7_000]


def test_sdps_does_nothing_to_a_guest_that_needs_none(start):
    spec = specification(guest=CALM, sdps=SdpsSpec())
    there, here = start(1, destination(spec)), start(0, throttled(spec, None))
    there.told()
    here.told()
    here.go()
    _, (report, failed, sleeps) = here.told()
    assert failed is None
    assert (report.slowdowns, sleeps) == ((), [0, 0])
    there.told()


@pytest.mark.needs_feature("pagemap_scan")
@pytest.mark.parametrize("how", ["quick resume", "after resume"])
def test_a_guest_runs_there_before_its_last_pages_came(start, namespaces, tmp_path, how):
    changes = {"guest": BUSY, "bitmap": "full", "resume_file": str(tmp_path / "vm.resume")}
    if how == "quick resume":
        slow(namespaces)
        spec = specification(**changes, quick_resume=True)
    else:
        spec = specification(**changes, remaining_pages="after resume", switchover_goal_ns=10**9)
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    report, _, cuts = here.told(60)
    there.told()
    assert cuts == ["cut"]
    assert report.switchover.pages_after_resume == report.post_copy.pages_missing > 100
    assert report.switchover.bitmap_bytes == BUSY.memory_bytes // 4096 // 8
    assert report.iterations[-1].pages < 100
    assert not report.post_copy.file_used
    assert not (tmp_path / "vm.resume").exists()


def test_a_network_that_fails_as_the_guest_resumes_is_got_round(start, namespaces, tmp_path):
    """The source never hears that the guest runs there, but finds it in the Quick Resume file."""
    changes = {"remaining_pages": "after resume", "resume_file": str(tmp_path / "vm.resume")}
    spec = specification(guest=BUSY, switchover_goal_ns=10**9, timeout_ns=10**9, **changes)

    def work(tell, told):
        def cut():
            run("ip", "-n", namespaces[1], "link", "set", "eth0", "down")

        with Destination(spec) as there:
            tell("listening")
            with there.receive(DestinationHooks(open=cut)).guest as guest:
                return advances(guest)

    there, here = start(1, work), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    report, *_ = here.told()
    assert there.told() == ("end", True)
    assert report.post_copy.pages_through_file == report.post_copy.pages_missing > 100
    assert report.stun_ns < report.total_ns


@pytest.mark.needs_feature("pagemap_scan")
def test_a_source_is_told_why_its_guest_can_not_be_resumed_early(start, tmp_path):
    """The destination doesn't see the datastore."""
    spec = specification(guest=CALM, quick_resume=True, resume_file=str(tmp_path / "vm.resume"))
    elsewhere = replace(spec, resume_file=str(tmp_path / "elsewhere" / "vm.resume"))
    there, here = start(1, destination(elsewhere)), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    _, (error, phase, text, *runs, _) = here.told()
    assert (error, phase, runs) == (MigrationFailed, Phase.PREPARE, [True, True])
    assert "open the Quick Resume file" in text
    assert not (tmp_path / "vm.resume").exists()


def test_a_guest_whose_pages_are_lost_has_failed_and_is_run_nowhere(start, namespaces):
    slow(namespaces)
    spec = specification(guest=BUSY, quick_resume=True, timeout_ns=1_000_000_000)

    def work(tell, told):
        hooks = SourceHooks(progress=lambda it: it.phase is Phase.PAGE_IN and tell("page-in"))
        with Guest.power_on(spec.guest) as guest:
            tell("on")
            told.recv(10)
            try:
                migrate(guest, spec, hooks)
            except MigrationLost as error:
                return error.phase, guest.running

    there, here = start(1, destination(spec)), start(0, work)
    there.told()
    here.told()
    here.go()
    assert here.told() == "page-in"
    there.kill()
    while (told := here.told()) == "page-in":
        pass
    assert told == ("end", (Phase.PAGE_IN, False))


def test_a_guest_to_be_verified_waits_for_all_of_its_pages(start):
    spec = specification(guest=CALM, remaining_pages="after resume", verify=True)
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    assert there.told() == "held"
    there.go()
    report, *_ = here.told()
    assert report.post_copy is None
    there.told()


@pytest.mark.parametrize(
    ("limit", "cause"),
    [({"deadline_ns": 300_000_000}, "deadline"), ({"downtime_limit_ns": 1000}, "downtime limit")],
    ids=["deadline", "downtime"],
)
def test_a_limit_ends_a_migration_that_would_exceed_it(start, namespaces, limit, cause):
    slow(namespaces)
    spec = specification(guest=CALM, max_iterations=4, switchover_goal_ns=10**10, **limit)
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    end, (error, phase, text, running, advanced, cuts) = here.told()
    assert (end, error, running, advanced, cuts) == ("end", MigrationFailed, True, True, [])
    assert phase is Phase.PRECOPY
    assert cause in text
    assert cause in there.told()[2]


def test_bytes_are_charged_to_both_hosts_and_take_as_long_as_their_cores(start, tmp_path):
    """8 cycles a byte of 200 MHz are 25 MB/s, whatever the wire could carry."""
    ledgers = [
        Ledger.open(tmp_path / name, cores=8, mhz=200, share_cores={"vmotion": 1}) for name in "ab"
    ]
    spec = specification(guest=CALM, cycles_per_byte=8, switchover_goal_ns=10**9)
    there = start(1, destination(spec, ledger=ledgers[1]))
    here = start(0, source(spec, ledger=ledgers[0]))
    there.told()
    here.told()
    here.go()
    report, *_ = here.told()
    there.told()
    assert report.iterations[0].throughput_bps < 1.1 * 25e6 * 8
    sent = sum(one.wire_bytes for one in report.iterations)
    for ledger in ledgers:
        assert 0.95 * 8 * sent < ledger.used()["vmotion"] < 1.05 * 8 * sent


def test_costs_without_a_ledger_are_refused(start):
    there = start(1, destination(specification(cycles_per_packet=100)))
    kind, name, text = there.told()
    assert (kind, name) == ("error", "InputError")
    assert "ledger" in text
