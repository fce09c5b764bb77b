"""`testbed iperf`, `ping`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from testbed.measure.endpoint import Endpoint

LAB = click.option("--lab", help="The lab; needed when several are up.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _ends(lab: str | None, source: str, destination: str, command: str) -> tuple[Endpoint, Endpoint]:
    """Both adapters of a running lab, with addresses of one IP version."""
    from testbed import kernel
    from testbed.lab.adapters import adapter, common_addresses
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root
    from testbed.measure.endpoint import Endpoint

    require_root(f"{command} {source} {destination}")
    _, journal = running_lab(lab)
    a, b = adapter(journal.plan, source), adapter(journal.plan, destination)
    ours, theirs = common_addresses(a, b)
    return (
        Endpoint(kernel.netns_path(a.netns), ours, a.device),
        Endpoint(kernel.netns_path(b.netns), theirs, b.device),
    )
