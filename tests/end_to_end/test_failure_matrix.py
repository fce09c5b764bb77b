"""Every fault in every phase: the guest ends on exactly one side, and nothing on the other.

The cells are failure_table.py's. They are run in labs side by side, as most of them wait for a
timeout, and each is judged by a test of its own.
"""

from __future__ import annotations

import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

from testbed.guest.tracking import probe
from tests.end_to_end.failure_faults import PHASES, Faults
from tests.end_to_end.failure_lane import Lane
from tests.end_to_end.failure_table import CELLS, Cell

if TYPE_CHECKING:
    from pathlib import Path

    from tests.end_to_end.failure_lane import Migration

pytestmark = pytest.mark.root

LANES = 4
LEFT_TO_TIMEOUTS = ("link down for good", "delay over the timeout", "VMX killed", "host off")


@dataclass
class Observed:
    """What a cell came to; `wrong` is what the lab's checks found, a traceback."""

    outcome: str = ""
    named: str = ""
    says: str = ""
    guest: str = ""
    wrong: str = ""


def id_of(cell: Cell) -> str:
    return f"{cell.phase}, {cell.fault}"


@pytest.fixture(scope="module")
def observed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Cell, Observed]:
    """What came of those cells that are asked for."""
    asked: SimpleQueue[Any] = SimpleQueue()
    for item in request.session.items:
        if item.path == request.path and isinstance(item, pytest.Function):
            cell = item.callspec.params["cell"]
            if cell.phase != "trace" or probe()[0] == "pagemap":  # else its test is skipped
                asked.put(cell)
    found: dict[Cell, Observed] = {}

    def work(name: str, directory: Path) -> None:
        with Lane(name, directory) as lane, suppress(Empty):
            while True:
                cell = asked.get_nowait()
                found[cell] = run(lane, cell)

    with ThreadPoolExecutor(LANES) as pool:
        lanes = [f"fail{number}" for number in range(min(LANES, asked.qsize()))]
        for done in [pool.submit(work, lane, tmp_path_factory.mktemp(lane)) for lane in lanes]:
            done.result()
    return found


def run(lane: Lane, cell: Cell) -> Observed:
    """A cell in a lab that is whole, which it is again afterwards."""
    seen = Observed()
    try:
        if cell.phase == "preparation":
            lane.see_to_agent()
        source = lane.host()
        said = disturbed(lane, cell)
        guest = lane.rest()
        result = said.get("result")
        failure = (result and result["failure"]) or {}
        seen.outcome = result["outcome"] if result else "refused"
        seen.named = failure.get("phase", "")
        seen.says = failure.get("cause", "") if result else said["error"]["message"]
        seen.guest = "died"
        if guest["state"] == "running":
            seen.guest = "source" if guest["host"] == source else "destination"
            lane.require_intact()
        lane.require_clean()
    except Exception:  # told by the test of this cell: the others are run nevertheless
        seen.wrong = traceback.format_exc()
    try:
        lane.mend()
        lane.require_intact()
        lane.require_reachable()
    except Exception:
        seen.wrong += traceback.format_exc()
    return seen


def disturbed(lane: Lane, cell: Cell) -> dict[str, Any]:
    """The migration's last word: `{"result"}`, or `{"error"}` if it was refused."""
    too_full = cell.fault == "no memory at the destination"
    slow = any(words in cell.fault for words in LEFT_TO_TIMEOUTS)
    impatient = slow and cell.phase not in {"before", "after"}
    profile = "impatient" if impatient else "patient"
    if cell.fault == "round trip over the limit":
        profile = "near"
    if cell.phase == "page-in":
        profile += ", early"

    def begin() -> Migration:
        to = "esx03" if too_full and cell.phase == "before" else None
        return lane.migrate(to, profile=profile, trace=cell.phase == "trace")

    with Faults(lane) as faults, ExitStack() as stack:
        if cell.phase == "before" and not too_full:
            faults.strike(cell.fault, None)
        if cell.phase == "before":
            return begin().ended()
        if too_full:
            stack.enter_context(faults.too_full())
        with PHASES[cell.phase](lane, begin) as move:
            if not too_full:
                faults.strike(cell.fault, move)
        if cell.fault != "delay over the timeout":
            lane.near()  # some phases are slow, so that they can be seen
        return move.ended()


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            cell,
            id=id_of(cell),
            marks=[pytest.mark.needs_feature("pagemap_scan")] if cell.phase == "trace" else [],
        )
        for cell in CELLS
    ],
)
def test_the_guest_ends_on_one_side_and_the_other_is_clean(
    observed: dict[Cell, Observed], cell: Cell
) -> None:
    seen = observed[cell]
    assert not seen.wrong, seen.wrong
    assert (seen.outcome, seen.guest) == (cell.outcome, cell.guest), seen.says
    assert seen.named == cell.named, seen.says
    assert not cell.says or any(words in seen.says for words in cell.says), seen.says
