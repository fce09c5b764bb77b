"""What fetching the remaining pages after resume (Quick Resume) achieved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PostCopyReport:
    """From the guest's resume until all of its pages were at the destination.

    `pages_missing` at resume, of which `pages_pushed` came in their turn, `pages_demanded`
    before it, as a vCPU waited for them, and `pages_through_file` by the Quick Resume file, after
    the network had failed (`network_failure` says how; empty: it did not). `duplicates` came
    more than once. `wire_bytes` went over the streams: page contents and headers.

    Each of the `faults` is a vCPU that came to wait for a page; two that wait for the same page
    wait once: p50, p99 and longest of these `waits`, from when the VMX knew of it until the
    page was there; None without any.

    `expect_ns` is what it took to make ready for missing pages before the stun, `install_ns`
    within it, and `whole_ns` from then until the guest was whole.
    """

    pages_missing: int
    pages_pushed: int
    pages_demanded: int
    pages_through_file: int
    duplicates: int
    wire_bytes: int
    faults: int
    waits: int
    wait_p50_ns: int | None
    wait_p99_ns: int | None
    wait_max_ns: int | None
    expect_ns: int
    install_ns: int
    whole_ns: int
    network_failure: str = ""

    @property
    def file_used(self) -> bool:
        """Whether the network failed and the file carried what was left."""
        return self.network_failure != ""
