"""Two namespaces joined by several wires, for migrations over more than one NIC."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager

MTU = 9000


def run(*words):
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert not done.returncode, f"{words}: {done.stderr}"
    return done.stdout


def address(side, path):
    """Of the first (0) or second (1) namespace on this path."""
    return f"10.99.{10 + path}.{1 + side}"


@contextmanager
def paths(*rates_bps):
    """Names of two namespaces with a path `ethN` for each rate; None: not shaped.

    Each path's addresses are in a subnet of their own; its first side is shaped.
    """
    names = f"tb-paths-{os.getpid()}-a", f"tb-paths-{os.getpid()}-b"
    with ExitStack() as undo:
        for name in names:
            run("ip", "netns", "add", name)
            undo.callback(run, "ip", "netns", "del", name)
            script = (
                "echo 4096 131072 134217728 > /proc/sys/net/ipv4/tcp_rmem;"
                "echo 4096 16384 134217728 > /proc/sys/net/ipv4/tcp_wmem"
            )
            run("ip", "netns", "exec", name, "sh", "-ec", script)
        for number, rate_bps in enumerate(rates_bps):
            device = f"eth{number}"
            far = ["peer", "name", device, "mtu", str(MTU), "netns", names[1]]
            add = ["link", "add", device, "mtu", str(MTU), "type", "veth", *far]
            run("ip", "-n", names[0], *add)
            for side, name in enumerate(names):
                at = f"{address(side, number)}/24"
                run("ip", "-n", name, "address", "add", at, "dev", device)
                run("ip", "-n", name, "link", "set", device, "up")
            if rate_bps is not None:
                shape(names[0], device, rate_bps)
        yield names


def shape(netns, device, rate_bps, burst="64k"):
    """Limit what a device sends."""
    tc = ["tc", "-n", netns]
    run(*tc, *f"qdisc add dev {device} root handle 1: htb default 1".split())
    rate = f"rate {rate_bps}bit ceil {rate_bps}bit quantum 65536 burst {burst} cburst {burst}"
    run(*tc, *f"class add dev {device} parent 1: classid 1:1 htb {rate}".split())
