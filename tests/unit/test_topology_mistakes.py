"""Every mistake in a file: its place, the offending value and the remedy, all at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from testbed.errors import InputError, Problem, TopologyError
from testbed.topology import load, loads

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
name: good
sites: {a: {}}
switches:
  tor-a: {site: a, mtu: 9000}
  tor-b: {mtu: 9000}
links:
  - {between: [tor-a, tor-b], rate: 10Gbit}
datastores:
  shared01: {hosts: "esx[01-02]"}
distributed_switches:
  DSwitch: {mtu: 9000, uplinks: [uplink1], portgroups: {vMotion: {}, VM-Network: {}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 8}
    memory: 64GiB
    nics:
      vmnic0: {switch: "tor-[a,b]", rate: 10Gbit, mtu: 9000, uplink: DSwitch/uplink1}
      vmnic1: {switch: tor-a}
    vswitches:
      vSwitch0: {uplinks: [vmnic1], portgroups: {Management: {}}}
    vmks:
      vmk0: {portgroup: Management, ip: "192.168.0.[11-12]/24", gateway: 192.168.0.1}
      vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}
vms:
  db01:
    host: esx01
    memory: 1GiB
    vcpus: 2
    datastore: shared01
    nics: [{portgroup: VM-Network, ip: 192.168.10.50/24}]
    workload: {kind: uniform, dirty_rate: 200MB/s, working_set: 20%}
"""


def problems(text: str) -> tuple[Problem, ...]:
    started = time.process_time()
    with pytest.raises(TopologyError) as error:
        loads(text, "lab.yaml")
    assert time.process_time() - started < 1
    assert error.value.exit_code == 2
    for problem in error.value.problems:
        assert problem.file == "lab.yaml"
        assert problem.message
        assert problem.remedy
        assert len(str(problem)) < 500
    return error.value.problems


def place_of(text: str, marked: str) -> tuple[int, int]:
    """The line and column of a string that the text has once."""
    assert text.count(marked) == 1, marked
    before = text[: text.index(marked)]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def test_the_file_that_the_mistakes_are_put_into_is_good() -> None:
    assert loads(GOOD, "lab.yaml").name == "good"


# (what is replaced, by what, where the problem is: the text that begins there,
#  what the message holds, what the remedy holds)
MISTAKES = {
    "unknown key": ("rate: 10Gbit}\nd", "rat: 10Gbit}\nd", "rat: ", "'rat'", "did you mean rate?"),
    "unknown top key": ("sites:", "site:", "site: {a", "'site'", "did you mean sites?"),
    "wrong unit": ("memory: 1GiB", "memory: 1GiBit", "1GiBit", "'1GiBit'", "2GiB"),
    "no unit": ("memory: 1GiB", "memory: 1024", "1024", "1024", "2GiB"),
    "wrong type": ("vcpus: 2", 'vcpus: "2"', '"2"', "'2'", "without quotes"),
    "dangling host": ("host: esx01", "host: esx03", "esx03", "'esx03'", "esx0"),
    "dangling datastore": ("datastore: shared01", "datastore: shard", "shard", "'shard'", "shared"),
    "dangling switch": ("[tor-a, tor-b]", "[tor-a, tor-x]", "tor-x", "'tor-x'", "tor-"),
    "dangling site": ("site: a,", "site: b,", "b, mtu", "'b'", "a"),
    "duplicate address": ("192.168.10.50/24", "192.168.20.12/24", "192.168.20.12", "vmk1", "own"),
    "duplicate name": ("  db01:", "  ESX01:", "ESX01:", "'ESX01'", "differ"),
    "network address": ("10.50/24", "10.0/24", "192.168.10.0/24", "192.168.10.0", "write it"),
    "broadcast address": ("10.50/24", "10.255/24", "192.168.10.255", "broadcast", "write it"),
    "no prefix length": ("10.50/24", "10.50", "192.168.10.50", "'192.168.10.50'", "/24"),
    "no address": ("10.50/24", "10.500/24", "192.168.10.500", "'192.168.10.500/24'", "/24"),
    "overlapping networks": ("10.50/24", "20.50/25", "192.168.20.50", "/24", "prefix length"),
    "gateway outside": ("gateway: 192.168.0.1}", "gateway: 192.168.9.1}", "192.168.9.1", "9.1", ""),
    "gateway itself": ("gateway: 192.168.0.1}", "gateway: 192.168.0.12}", "192.168.0.12", "12", ""),
    "rate 0": (
        "[tor-a, tor-b], rate: 10Gbit",
        "[tor-a, tor-b], rate: 0Gbit",
        "0Gbit}\nd",
        "'0Gbit'",
        "8kbit",
    ),
    "MTU 70000": ("tor-b: {mtu: 9000", "tor-b: {mtu: 70000", "70000", "70000", "9216"),
    "name with slash": ("name: good", "name: a/b", "a/b", "'a/b'", "letters"),
    "VM with slash": ("  db01:", "  db/01:", "db/01", "'db/01'", "letters"),
    "long name": ("name: good", "name: " + "x" * 300, "x" * 300, "300 characters", "31"),
    "long key": ("  db01:", f"  {'x' * 300}:", "x" * 300, "300 characters", "63"),
    "too many vCPUs": ("vcpus: 2", "vcpus: 9", "9\n", "9 vCPUs", "at most 8"),
    "too much memory": ("memory: 1GiB", "memory: 65GiB", "65GiB", "'65GiB'", "more memory"),
    "unpaged memory": ("memory: 1GiB", "memory: 2000001B", "2000001B", "'2000001B'", "4 KiB"),
    "working set": ("set: 20%", "set: 2GiB", "2GiB", "2 GiB", "smaller"),
    "tiny working set": ("set: 20%", "set: 0.0001%", "0.0001%", "0.0001%", "larger"),
    "idle with rate": (
        "uniform, dirty_rate: 200MB/s",
        "idle",
        "working_set",
        "'working_set' in a workload of this kind",
        "allowed here: kind",
    ),
    "no such uplink": (
        "DSwitch/uplink1",
        "DSwitch/uplink2",
        "DSwitch/uplink2",
        "uplink2",
        "uplink1",
    ),
    "no such vmnic": ("uplinks: [vmnic1]", "uplinks: [vmnic7]", "vmnic7", "'vmnic7'", "vmnic"),
    "vmnic used twice": ("uplinks: [vmnic1]", "uplinks: [vmnic0]", "vmnic0]", "DSwitch", "one"),
    "vmk name": ("vmk1: {", "kernel1: {", "kernel1", "'kernel1'", "vmk0"),
    "vmnic name": ("      vmnic1: {", "      vmnic01: {", "vmnic01", "'vmnic01'", "vmnic0"),
    "pattern count": ("20.[11-12]", "20.[11-13]", '"192.168.20.[', "3 values", "each name"),
    "pattern alone": (
        "host: esx01",
        'host: "esx[01-02]"',
        '"esx[01-02]"\n',
        "pattern",
        "one value",
    ),
    "broken pattern": ("192.168.10.50/24", "'10.0.0.[1/24'", "'10.0.0.[", "bracket", "esx[01-32]"),
    "scale": ("sites:", "scale: 3\nsites:", "3\ns", "'3'", "1/10"),
    "scale not whole": ("sites:", "scale: 1/3\nsites:", "64GiB", "'64GiB'", "12 KiB"),
    "vmk above vSwitch": (
        "DSwitch: {mtu: 9000",
        "DSwitch: {mtu: 8000",
        "9000}\nvms",
        "8000 of its virtual switch DSwitch",
        "raise",
    ),
    "vmnic below vSwitch": (
        "vSwitch0: {",
        "vSwitch0: {mtu: 3000, ",
        "{switch: tor-a}",
        "1500",
        "raise",
    ),
    "vmnic above switch": (
        "tor-b: {mtu: 9000}",
        "tor-b: {mtu: 8999}",
        "9000, uplink: DSwitch/uplink1}\n      vmnic1",
        "8999",
        "raise",
    ),
    "duplicate key": ("vcpus: 2", "memory: 2GiB", "memory: 2GiB", "'memory'", "keep one"),
    "link to itself": ("[tor-a, tor-b]", "[tor-a, tor-a]", "[tor-a, tor-a]", "tor-a", "two"),
    "one end": ("[tor-a, tor-b]", "[tor-a]", "[tor-a]", "1", "2"),
    "anchor unknown": ("vcpus: 2", "vcpus: *x", "*x", "*x", "&x"),
    "tag": ("vcpus: 2", "vcpus: !!python/name:os.system 2", "!!python", "python", "remove"),
    "key no string": ("  db01:", "  010:", "010:", "'010'", "quotes"),
    "list for mapping": ("cpu: {cores: 8}", "cpu: [8]", "[8]", "a list", ""),
    "mapping for scalar": ("vcpus: 2", "vcpus: {a: 1}", "{a: 1}", "a mapping", ""),
    "MAC": (
        "{portgroup: VM-Network,",
        "{portgroup: VM-Network, mac: 01:00:5e:00:00:01,",
        "01:00:5e",
        "'01:00:5e:00:00:01'",
        "six bytes",
    ),
    "not text": ("name: good", "name: 12", "12\n", "12", "quotes"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_once_at_its_place(mistake: str) -> None:
    old, new, marked, message, remedy = MISTAKES[mistake]
    assert GOOD.count(old) == 1, old
    text = GOOD.replace(old, new)
    found = problems(text)
    at_place = [p for p in found if (p.line, p.column) == place_of(text, marked)]
    assert len(at_place) == 1, found
    assert message in at_place[0].message
    assert remedy in at_place[0].remedy
    assert {(p.line, p.column) for p in found} == {place_of(text, marked)} or mistake in (
        "unknown top key",  # the site that it would define is missing too, but not told
        "scale not whole",  # every memory size is
    ), found


def test_a_vm_in_a_port_group_that_its_host_lacks() -> None:
    text = GOOD.replace("[{portgroup: VM-Network", "[{portgroup: VM-Netwrok")
    (problem,) = problems(text)
    assert (problem.line, problem.column) == place_of(text, "VM-Netwrok")
    assert problem.remedy == "did you mean VM-Network?"


def test_a_missing_key_is_told_at_the_object_that_lacks_it() -> None:
    (problem,) = problems(GOOD.replace("    memory: 1GiB\n", ""))
    assert (problem.line, problem.column) == place_of(GOOD, "db01:")
    assert problem.where == "vms.db01"
    assert "memory" in problem.message


def test_a_name_that_is_missing_is_told_at_the_start() -> None:
    (problem,) = problems("sites: {}\n")
    assert (problem.line, problem.column) == (1, 1)
    assert "name" in problem.message


def test_all_mistakes_are_told_in_one_go() -> None:
    chosen = ("unknown key", "dangling host", "network address", "MTU 70000", "gateway outside")
    text = GOOD
    for mistake in chosen:
        text = text.replace(*MISTAKES[mistake][:2])
    found = [(p.line, p.column) for p in problems(text)]
    assert found == sorted(place_of(text, MISTAKES[m][2]) for m in chosen)


def test_a_mistake_causes_no_false_ones() -> None:
    """What refers to an object with a mistake, or stands beside it, isn't blamed."""
    text = GOOD.replace("memory: 64GiB", "memory: lots").replace("tor-a: {", "tor-a: {colour: 1, ")
    text = text.replace("DSwitch: {mtu: 9000", "DSwitch: {mtu: nine").replace(
        "shared01:", "s/1:", 1
    )
    text = text.replace("datastore: shared01", "datastore: s/1")
    found = {p.where for p in problems(text)}
    assert found == {
        "hosts.esx01.memory",
        "switches.tor-a.colour",
        "distributed_switches.DSwitch.mtu",
        "datastores.s/1",
    }


def test_a_mistake_in_one_object_hides_none_in_another() -> None:
    text = GOOD.replace("vmk1: {portgroup: vMotion, ", "vmk1: {portgroup: vMotion, colour: red, ")
    text = text.replace("192.168.10.50/24", "192.168.20.12/24")
    assert {p.where for p in problems(text)} == {
        "hosts.esx01.vmks.vmk1.colour",
        "vms.db01.nics[0].ip",
    }


def test_a_mistake_of_a_pattern_is_told_once() -> None:
    (problem,) = problems(
        GOOD.replace("esx[01-02]", "esx[01-32]")
        .replace("64GiB", "64Gigs")
        .replace("[11-12]", "[11-42]")
        .replace("tor-[a,b]", "tor-b")
    )
    assert "'64Gigs'" in problem.message


def test_more_mistakes_than_anybody_reads_are_cut() -> None:
    found = problems(GOOD + "".join(f"key{n}: 1\n" for n in range(5000)))
    assert 100 <= len(found) <= 101
    assert any("more mistakes" in p.message for p in found)


LOOP = """\
name: loop
switches: {"s[1-4]": {}}
links:
  - {between: [s1, s2]}
  - {between: [s3, s4]}
  - {between: [s2, s3]}
  - {between: [s1, s3]}
"""


def test_a_loop_names_its_links_and_no_other() -> None:
    (problem,) = problems(LOOP)
    assert problem.where == "links[3].between"
    assert "links[0], links[2], links[3]" in problem.message
    assert "links[1]" not in problem.message


def narrow_lab(middle_mtu: int) -> str:
    return (
        GOOD.replace("links:\n", "links:\n  - {between: [mid, tor-b]}\n")
        .replace("[tor-a, tor-b]", "[tor-a, mid]")
        .replace("switches:\n  tor-a", f"switches:\n  mid: {{mtu: {middle_mtu}}}\n  tor-a")
    )


def test_a_path_that_narrows_between_vmotion_vmks_names_the_narrow_switch() -> None:
    assert loads(narrow_lab(9000), "f").links[0].mtu == 9000
    text = narrow_lab(4000)
    (problem,) = problems(text)
    assert problem.where == "switches.mid.mtu"
    assert (problem.line, problem.column) == place_of(text, "4000")
    assert "4000" in problem.message
    assert "vmk1 of esx01" in problem.message
    assert "vmk1 of esx02" in problem.message


def test_vmotion_vmks_of_one_network_need_a_path() -> None:
    found = problems(GOOD.replace("  - {between: [tor-a, tor-b], rate: 10Gbit}\n", "  []\n"))
    assert [p.where for p in found] == ["hosts.esx02.vmks.vmk1"]
    assert "tor-a" in found[0].message


def test_ipv6_needs_an_mtu_of_1280() -> None:
    six = GOOD.replace("192.168.10.50/24", '"fd00::50/64"').replace(
        "VM-Network, ip", "Management, ip"
    )
    text = six.replace("vSwitch0: {", "vSwitch0: {mtu: 1000, ").replace(
        "vmk0: {", "vmk0: {mtu: 1000, "
    )
    (problem,) = problems(text)
    assert problem.where == "hosts.esx01.vswitches.vSwitch0.mtu"
    assert "1280" in problem.remedy


def many_nics(count: int, rate: str) -> str:
    nics = "".join(f"      vmnic{n}: {{switch: tor, rate: {rate}}}\n" for n in range(count))
    switches = "".join(
        f"      v{n}: {{uplinks: [vmnic{n}], portgroups: {{p{n}: {{}}}}}}\n" for n in range(count)
    )
    vmks = "".join(
        f"      vmk{n}: {{portgroup: p{n}, ip: 10.0.0.{n + 1}/24, services: [vmotion]}}\n"
        for n in range(count)
    )
    return (
        "name: many\nswitches: {tor: {}}\nhosts:\n  h1:\n    cpu: {cores: 1}\n    memory: 1GiB\n"
        f"    nics:\n{nics}    vswitches:\n{switches}    vmks:\n{vmks}"
    )


@pytest.mark.parametrize(("rate", "most"), [("1Gbit", 16), ("10Gbit", 4), ("40Gbit", 4)])
def test_vspheres_limit_of_vmotion_nics_holds(rate: str, most: int) -> None:
    assert len(loads(many_nics(most, rate), "f").hosts[0].vmks) == most
    (problem,) = problems(many_nics(most + 1, rate))
    assert f"{most + 1} x" in problem.message
    assert f"at most {most}" in problem.remedy


def test_the_limit_of_vmotion_nics_is_by_nominal_rate() -> None:
    text = many_nics(5, "10Gbit").replace("name: many", "name: many\nscale: 1/16")
    assert "10 GbE" in problems(text)[0].message


SYNTAX = {
    "tab": ("name: x\n\tsites: {}\n", (2, 1)),
    "open bracket": ("name: x\nlinks: [\n", (3, 1)),
    "colon": ("name: x: y\n", (1, 8)),
    "control character": ("name: x\nsites: \x01\n", (2, 8)),
    "two documents": ("name: x\n---\nname: y\n", (2, 1)),
    "empty": ("", (1, 1)),
    "comment only": ("# nothing\n", (1, 1)),
    "no mapping": ("hello\n", (1, 1)),
    "list": ("- a\n", (1, 1)),
    "recursive alias": ("name: x\nhosts: &h\n  a: *h\n", (3, 6)),
    "deep": ("name: x\nhosts: " + "[" * 100_000, (2, 31)),
    "deep aliases": (
        "name: x\na: &a " + "[" * 20 + "]" * 20 + "\nb: &b " + "[" * 20 + "*a" + "]" * 20,
        (3, 27),
    ),
    "key is a list": ("name: x\n? [a]\n: b\n", (2, 3)),
}


@pytest.mark.parametrize("case", SYNTAX)
def test_what_is_no_yaml_of_ours_is_told_at_its_place(case: str) -> None:
    text, place = SYNTAX[case]
    (problem,) = problems(text)
    assert (problem.line, problem.column) == place


def test_an_alias_bomb_is_refused_before_it_goes_off() -> None:
    text = "name: x\na: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True):
        text += f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n"
    (problem,) = problems(text)
    assert "aliases" in problem.message


def test_an_alias_may_save_repetition() -> None:
    text = GOOD.replace("tor-a: {site: a, mtu: 9000}", "tor-a: &tor {mtu: 9000}")
    lab = loads(text.replace("tor-b: {mtu: 9000}", "tor-b: *tor"), "f")
    assert [s.mtu for s in lab.switches] == [9000, 9000]


@pytest.mark.parametrize("name", ["no", "on", "y", "1_000", "0b1", "10-20", "2026-11-21"])
def test_yaml_1_1_does_not_mangle_names(name: str) -> None:
    lab = loads(f"name: {name}\nsites: {{{name}: {{}}}}\n", "f")
    assert (lab.name, lab.sites) == (name, (name,))


def test_a_mac_address_needs_no_quotes() -> None:
    mac = "00:50:56:10:20:30"
    nic = "[{portgroup: VM-Network, "
    assert loads(GOOD.replace(nic, f"{nic}mac: {mac}, "), "f").vms[0].nics[0].mac == mac


HOSTILE = {
    "10 MB": b"name: x # " + b"x" * 10_000_000,
    "binary": b"\x7fELF\x00\x01",
    "latin-1": "name: caf\xe9\n".encode("latin-1"),
    "half a surrogate": b"name: \xed\xa0\x80\n",
    "utf-16": "name: x\n".encode("utf-16"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_no_text_is_one_clear_error(case: str, tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_bytes(HOSTILE[case])
    started = time.process_time()
    with pytest.raises(InputError) as error:
        load(path)
    assert time.process_time() - started < 1
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_can_not_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(InputError, match="can't be read"):
        load(tmp_path / "a.yaml" / ("x" * 5000))


@pytest.mark.parametrize(
    "text",
    [
        "name: x\nhosts: {" + ", ".join(f'"h{n}[1-1024]": {{}}' for n in range(999)) + "}",
        "name: x\nhosts: {" + ", ".join(f"h{n}: {{}}" for n in range(8000)) + "}",
        'name: x\nhosts: {"h[1-2]": {' + ", ".join(f'k{n}: "[1-1024]"' for n in range(8000)) + "}}",
        "name: x\ndatastores: {d: {hosts: [" + ", ".join(['"[1-1024]"'] * 8000) + "]}}",
        "name: x\nvms: {" + ", ".join(f"v{n}: {{host: h{n}}}" for n in range(5000)) + "}",
        'name: x\nswitches: {"s[1-999]": {}}\nlinks:\n'
        + "".join(f"  - {{between: [s{n}, s{n + 1}]}}\n" for n in range(1, 999))
        + "  - {between: [s1, s999]}\n" * 3000,
    ],
    ids=["patterns", "hosts", "values", "datastore", "dangling", "loops"],
)
def test_a_large_bad_file_is_answered_within_a_second(text: str) -> None:
    assert problems(text)


def test_a_router_has_a_network_once() -> None:
    router = "routers:\n  r: {interfaces: {tor-a: {ip: 10.9.0.1/24}, tor-b: {ip: 10.9.0.2/24}}}\n"
    (problem,) = problems(GOOD + router)
    assert problem.where == "routers.r.interfaces.tor-b.ip"
    assert "10.9.0.2/24" in problem.message
    text = GOOD + router.replace("10.9.0.2/24", "10.8.0.1/24")
    assert len(loads(text, "f").routers[0].interfaces) == 2
