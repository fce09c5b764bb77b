"""`testbed exec`, `shell`."""

from __future__ import annotations

import os
import shlex

import click


def _enter(lab: str, node: str, command: tuple[str, ...], called: str) -> None:
    from testbed.lab.enter import netns_of, replace_process, running_lab
    from testbed.lab.privilege import require_root

    require_root(called)
    _, journal = running_lab(lab)
    environment = {"TESTBED_LAB": lab, "TESTBED_NODE": node, "PS1": f"[{node}@{lab}] \\w # "}
    replace_process(netns_of(journal, node), command, environment)


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("lab")
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(lab: str, node: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in NODE of LAB: testbed exec quickstart esx01 -- ip addr.

    The exit code is the command's own.
    """
    _enter(lab, node, command, f"exec {lab} {node} -- {shlex.join(command)}")


@click.command("shell")
@click.argument("lab")
@click.argument("node")
def shell_command(lab: str, node: str) -> None:
    """Open a shell in NODE of LAB."""
    _enter(lab, node, (os.environ.get("SHELL", "/bin/sh"),), f"shell {lab} {node}")
