"""The `testbed` command: parses, calls, and turns errors into exit codes."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from testbed import __version__
from testbed.errors import TestbedError, TopologyError

if TYPE_CHECKING:
    from types import FrameType

COMMANDS = {
    "validate": ("testbed.cli.topology", "Check a topology file; touches nothing."),
    "plan": ("testbed.cli.topology", "Show what 'up' would do, or 'apply' to a running lab."),
    "schema": ("testbed.cli.topology", "Print the JSON Schema of the topology file."),
    "profile": ("testbed.cli.profile", "List the profiles of vMotion's generations, or show one."),
    "up": ("testbed.cli.lab", "Build the lab of a topology and power on its VMs."),
    "apply": ("testbed.cli.lab", "Change a running lab to a topology."),
    "down": ("testbed.cli.lab", "Take a lab down and restore the machine."),
    "status": ("testbed.cli.status", "Show labs, or one lab's nodes, VMs and links."),
    "exec": ("testbed.cli.node", "Run a command in a node of a lab."),
    "shell": ("testbed.cli.node", "Open a shell in a node of a lab."),
    "migrate": ("testbed.cli.migrate", "Migrate VMs to another host and measure it."),
    "evacuate": ("testbed.cli.evacuate", "Put a host into maintenance mode: move its VMs away."),
    "vm": ("testbed.cli.vm", "Show what a VM does; switch its workloads, throttle, record."),
    "link": ("testbed.cli.link", "Cut, restore or change a link of a running lab, for a time too."),
    "iochain": ("testbed.cli.iochain", "Show what a port does with frames, with its counters."),
    "report": ("testbed.cli.report", "Show stored results again, or side by side; as HTML."),
    "log": ("testbed.cli.log", "Show a host's vmkernel log, or read one of a real host."),
    "iperf": ("testbed.cli.measure", "Measure TCP throughput between two adapters."),
    "ping": ("testbed.cli.measure", "Measure round trips between two adapters."),
    "vmkping": ("testbed.cli.reach", "Ping from a host as ESXi's vmkping does."),
    "traceroute": ("testbed.cli.reach", "Show the routers between a host and an address."),
    "nc": ("testbed.cli.reach", "Try a TCP port from a host, or listen on one."),
    "net-stats": ("testbed.cli.live", "List the ports of a host, or their counters and rates."),
    "top": ("testbed.cli.live", "Watch what passes every port, uplink and traffic class."),
    "pktcap": ("testbed.cli.pktcap", "Capture frames at an adapter into a pcapng file."),
    "doctor": ("testbed.cli.doctor", "Tell what this machine has and what each feature will use."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and help line; imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="testbed")
def cli() -> None:
    """A small vSphere estate on this machine, from one YAML file, with real vMotion.

    Start with:  sudo testbed up topologies/quickstart.yaml
    """


def main() -> NoReturn:
    """Run the command line.

    Exit codes: 0 done; 1 failed; 2 wrong input, or not root; 130 interrupted.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    try:
        result: Any = cli.main(standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TopologyError as error:
        click.echo(str(error), err=True)
        count = len(error.problems)
        click.echo(f"testbed: {count} mistake{'s' if count > 1 else ''}; nothing done", err=True)
        sys.exit(error.exit_code)
    except TestbedError as error:
        click.echo(f"testbed: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("testbed: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    """A signal to end becomes ordinary unwinding."""
    raise KeyboardInterrupt
