"""What a result says of the stun and of what was done about it: rows of name, value, meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.units import format_byte_rate, format_duration, format_size

if TYPE_CHECKING:
    from testbed.report.post_copy import PostCopyReport
    from testbed.report.result import EngineReport, Slowdown, Switchover

Row = tuple[str, str, str]


def switchover_rows(engine: EngineReport, goal_ns: int) -> list[Row]:
    """Everything about a switchover that there is something to be said of."""
    rows: list[Row] = []
    if engine.slowdowns:
        rows.append(_slowed_down(engine.slowdowns))
    if zero_pages := sum(one.zero_pages for one in engine.iterations):
        meaning = "told instead of sent; throughputs do not count them"
        rows.append(("Zero pages", f"{zero_pages:,}", meaning))
    if engine.switchover is not None:
        rows += _parts(engine, engine.switchover)
    if over := why_over_goal(engine, goal_ns):
        rows.append(("Stun over the goal", over, "what the stun was made of"))
    if engine.post_copy is not None:
        rows.append(_post_copy(engine.post_copy))
    return rows


def why_over_goal(engine: EngineReport, goal_ns: int) -> str:
    """What made the stun longer than the switchover goal; empty: it was not, or nobody knows."""
    stun_ns, parts = engine.stun_ns, engine.switchover
    if stun_ns is None or parts is None or stun_ns <= goal_ns:
        return ""
    resume_ns = stun_ns - parts.suspend_ns - parts.copy_ns
    pages = engine.iterations[-1].pages
    bitmap = ""
    if parts.bitmap is not None:
        bitmap = f" and the {parts.bitmap} bitmap of {format_size(parts.bitmap_bytes)}"
    return (
        f"by {format_duration(stun_ns - goal_ns)}: {format_duration(parts.suspend_ns)} until the "
        f"guest stood still and its last pages were found, {format_duration(parts.copy_ns)} for "
        f"{pages:,} pages{bitmap} (estimated: {format_duration(parts.estimated_ns)}), "
        f"{format_duration(resume_ns)} until it ran"
    )


def _parts(engine: EngineReport, parts: Switchover) -> list[Row]:
    pages = engine.iterations[-1].pages
    value = (
        f"{format_duration(parts.suspend_ns)} to stop, {format_duration(parts.copy_ns)} "
        f"for {pages:,} page{'s' * (pages != 1)}"
    )
    rows = [("Switchover", value, "at the source, until the destination had what it waits for")]
    if parts.bitmap is not None:
        told = f"{parts.bitmap}, {format_size(parts.bitmap_bytes)}"
        meaning = "which pages were still to come; made and sent while the guest stood still"
        rows.append(("Bitmap", f"{told} in {format_duration(parts.bitmap_ns)}", meaning))
    if parts.swap_bitmap_bytes:
        value = f"{parts.swapped_pages:,} in the swap file"
        told = format_size(parts.swap_bitmap_bytes)
        rows.append(("Swapped pages", value, f"not sent: the swap bitmap and slots, {told}, were"))
    return rows


def _slowed_down(steps: tuple[Slowdown, ...]) -> Row:
    longest = max(steps, key=lambda step: step.sleep_ns_per_ms)
    share = 1e6 / (1e6 + longest.sleep_ns_per_ms)
    first = steps[0]
    value = f"{len(steps)} steps from iteration {first.after_iteration} on; vCPUs at {share:.1%}"
    meaning = (
        f"the guest dirtied {format_byte_rate(first.dirty_bytes_per_s)} then, and "
        f"{format_byte_rate(first.transmit_bytes_per_s)} were transmitted; a vCPU slept at most "
        f"{format_duration(longest.sleep_ns_per_ms)} for each ms that it had run"
    )
    return ("SDPS", value, meaning)


def _post_copy(report: PostCopyReport) -> Row:
    value = (
        f"{report.pages_missing:,} pages in {format_duration(report.whole_ns)}, "
        f"{report.pages_demanded:,} on demand"
    )
    if report.file_used:
        value += f"; {report.pages_through_file:,} by file, as {report.network_failure}"
    meaning = "sent while the guest ran at the destination already"
    if report.wait_p50_ns is not None and report.wait_max_ns is not None:
        meaning += (
            f"; a vCPU waited {format_duration(report.wait_p50_ns)} for a page (median), "
            f"{format_duration(report.wait_max_ns)} at most"
        )
    return ("Pages after resume", value, meaning)
