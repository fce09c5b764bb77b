"""What a NIC does for the kernel, set by ethtool's ioctl (linux/ethtool.h).

Without segmentation the kernel cuts TCP's trains into frames of the link's MTU before the NIC
gets them. Segmentation needs the checksum, as on a real NIC: without it there is neither.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import netns
from testbed.kernel.refusals import describe, differs

if TYPE_CHECKING:
    from testbed.kernel.channels import Channels
    from testbed.plan.policies import Offloads

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_SS_FEATURES, _NAME_BYTES = 4, 32
_IFREQ = struct.Struct("=16sQ16x")  # name, pointer to the command
_PAIR, _TRIPLE, _BLOCK = struct.Struct("=2I"), struct.Struct("=3I"), struct.Struct("=4I")
_BLOCK_BITS = 32


def set_offloads(channels: Channels, step: Offloads) -> None:
    """Turn a NIC's offloads on or off.

    Raises:
        KernelError: there is no such link, or the kernel refuses.
    """
    channels.step_into(step.netns)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            names = _names(opened, step.dev)
            blocks = _blocks(opened, step.dev, len(names))
            valid, wanted = [0] * len(blocks), [0] * len(blocks)
            for bit, name in enumerate(names):
                block, mask = bit // _BLOCK_BITS, 1 << bit % _BLOCK_BITS
                available, _, _, never_changed = blocks[block]
                on = _is_wanted(step, name)
                if on is not None and available & ~never_changed & mask:
                    valid[block] |= mask
                    wanted[block] |= mask if on else 0
            pairs = b"".join(map(_PAIR.pack, valid, wanted))
            _command(opened, step.dev, _PAIR.pack(_SFEATURES, len(blocks)) + pairs)
    except OSError as error:
        raise _refused("set", step, error) from error


def check_offloads(channels: Channels, step: Offloads) -> None:
    """Compare a NIC's offloads with the step.

    Raises:
        KernelError: one differs, or cannot be read.
    """
    channels.step_into(step.netns)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            names = _names(opened, step.dev)
            blocks = _blocks(opened, step.dev, len(names))
    except OSError as error:
        raise _refused("read", step, error) from error
    for bit, name in enumerate(names):
        available, _, active, never_changed = blocks[bit // _BLOCK_BITS]
        mask = 1 << bit % _BLOCK_BITS
        on = _is_wanted(step, name)
        if on is not None and available & ~never_changed & mask and bool(active & mask) != on:
            states = ("on", "off") if on else ("off", "on")
            raise differs(step, f"{name} of {step.dev}", *states)


def read_offloads(where: str, dev: str) -> tuple[bool, bool]:
    """Whether a NIC cuts TCP's trains itself, and computes checksums, as the kernel has it.

    Raises:
        KernelError: there is no such namespace or link, or it cannot be read.
    """
    try:
        with netns.inside(where):
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with opened:
            names = _names(opened, dev)
            blocks = _blocks(opened, dev, len(names))
    except OSError as error:
        target = f"{dev} in {where}"
        raise KernelError("read the offloads of", target, str(error.strerror)) from error
    active = {
        name
        for bit, name in enumerate(names)
        if blocks[bit // _BLOCK_BITS][2] & 1 << bit % _BLOCK_BITS
    }
    checksums = any(name.startswith("tx-checksum-") for name in active)
    return "tx-tcp-segmentation" in active, checksums


def _is_wanted(step: Offloads, name: str) -> bool | None:
    """Whether an ethtool feature is to be on; None for what the step doesn't concern."""
    if name.startswith("tx-checksum-"):
        return step.checksum
    if name.startswith("tx-") and (name.endswith("-segmentation") or name == "tx-gso-list"):
        # The generic one is the kernel's own cutting, which is what takes over.
        return None if name == "tx-generic-segmentation" else step.segmentation and step.checksum
    return None


def _names(opened: socket.socket, dev: str) -> list[str]:
    question = struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _SS_FEATURES, 0)
    (count,) = struct.unpack_from("=I", _command(opened, dev, question), 16)
    question = _TRIPLE.pack(_GSTRINGS, _SS_FEATURES, count) + bytes(count * _NAME_BYTES)
    data = _command(opened, dev, question)[_TRIPLE.size :]
    return [
        data[at : at + _NAME_BYTES].rstrip(b"\0").decode()
        for at in range(0, count * _NAME_BYTES, _NAME_BYTES)
    ]


def _blocks(opened: socket.socket, dev: str, features: int) -> list[tuple[int, ...]]:
    count = -(-features // _BLOCK_BITS)
    question = _PAIR.pack(_GFEATURES, count) + bytes(count * _BLOCK.size)
    return list(_BLOCK.iter_unpack(_command(opened, dev, question)[_PAIR.size :]))


def _command(opened: socket.socket, dev: str, command: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(command, len(command))
    fcntl.ioctl(opened, _SIOCETHTOOL, _IFREQ.pack(dev.encode(), ctypes.addressof(buffer)))
    return buffer.raw


def _refused(verb: str, step: Offloads, error: OSError) -> KernelError:
    kind, target = describe(step)
    return KernelError(
        f"{verb} {kind}", target, os.strerror(error.errno or 0), f"see `ethtool -k {step.dev}`"
    )
