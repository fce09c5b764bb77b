"""The sysctls of a namespace, by the role of its node."""

from __future__ import annotations

_LARGEST_BUFFER_BYTES = 128 * 1024 * 1024
"""Holds 10 Gb/s at 100 ms; a stream's own buffer is chosen by the stream, not here."""

_IPV4 = "net/ipv4"
BRIDGE = "net/bridge"
"""Only there where br_netfilter is: without it frames don't pass iptables anyway."""

_TABLES = ("iptables", "ip6tables", "arptables")
_IPV6 = "net/ipv6/conf"


def sysctls(role: str) -> tuple[tuple[str, str], ...]:
    """(path under /proc/sys, value) pairs for a namespace of this role.

    Links have no IPv6 until an address asks for it: a switch's port has no IP stack. A host
    answers ARP for an address only on the adapter that has it, and asks with that adapter's
    own address (several vmks may be in one network); reverse-path filtering is off because
    answers leave by the vmk they came to, by its own table. What a bridge forwards passes no
    iptables, which has nothing to say here and costs 1-2 % of a fast path; a wire's delay line
    sets its own.
    """
    pairs = [(f"{_IPV6}/default/disable_ipv6", "1"), (f"{_IPV6}/all/disable_ipv6", "1")]
    if role != "wire":
        pairs += [(f"{BRIDGE}/bridge-nf-call-{tables}", "0") for tables in _TABLES]
    if role in {"switch", "wire"}:
        return tuple(pairs)
    forwarding = "1" if role == "router" else "0"
    pairs += [
        (f"{_IPV4}/ip_forward", forwarding),
        (f"{_IPV6}/all/forwarding", forwarding),
        (f"{_IPV6}/default/accept_ra", "0"),
    ]
    for which in ("all", "default"):
        pairs += [
            (f"{_IPV4}/conf/{which}/rp_filter", "0"),
            (f"{_IPV4}/conf/{which}/arp_ignore", "1"),
            (f"{_IPV4}/conf/{which}/arp_announce", "2"),
        ]
    pairs += [
        (f"{_IPV4}/tcp_rmem", f"4096\t131072\t{_LARGEST_BUFFER_BYTES}"),
        (f"{_IPV4}/tcp_wmem", f"4096\t65536\t{_LARGEST_BUFFER_BYTES}"),
    ]
    return tuple(pairs)
