"""What `doctor` is told agrees with what iproute2 can do, and trying leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.kernel.probe import probe

TRIALS = {
    "veth": "ip link add name va type veth peer name vb",
    "bridge": "ip link add name br5 type bridge",
    "htb": "tc qdisc add dev lo root htb",
    "clsact": "tc qdisc add dev lo clsact",
    "netem": "tc qdisc add dev lo root netem delay 1ms",
    "8021q": "ip link add br5 type bridge; ip link add link br5 type vlan id 5",
}


@pytest.mark.root
def test_the_probe_agrees_with_iproute2_and_leaves_nothing():
    before = subprocess.run(["ip", "-br", "link"], capture_output=True, check=True).stdout
    found = {capability.name: capability for capability in probe()}
    for name, command in TRIALS.items():
        done = subprocess.run(
            ["unshare", "--net", "sh", "-ec", command], capture_output=True, check=False
        )
        assert found[name].present == (done.returncode == 0), found[name]
    assert found["network namespaces"].present
    assert subprocess.run(["ip", "-br", "link"], capture_output=True, check=True).stdout == before
    for capability in found.values():
        assert capability.used_for
        assert capability.present or capability.fallback or capability.install, capability


@pytest.mark.root
def test_without_root_it_says_what_root_would_find_out():
    code = (
        "import os; os.setgid(65534); os.setuid(65534)\n"
        "from testbed.kernel.probe import probe\n"
        "found = {c.name: c for c in probe()}\n"
        "assert found['veth'].present is None and 'root' in found['veth'].detail, found['veth']\n"
        "assert found['TCP cubic'].present is not None\n"
    )
    # Where nobody may not read this checkout, the child could not import it: load it first.
    code = "import testbed.kernel.probe, testbed.errors\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2], env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
