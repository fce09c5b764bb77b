"""Guest memory in pages of 2 MiB: huge pages if the machine has them, else collapsed ones.

hugetlb memory is traced at 2 MiB: a first write dirties all 512 small pages. Collapsed memory
(MADV_COLLAPSE, which Linux does whatever `shmem_enabled` says) is mapped in 2 MiB entries
until it is write-protected: the kernel then drops these and traces 4 KB pages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from testbed.errors import KernelError
from testbed.guest.availability import check_available
from testbed.guest.specification import LARGE_PAGE_BYTES

_MFD_HUGETLB_2MIB = 0x4 | 21 << 26  # linux/memfd.h
_MAP_FIXED = 0x10
_MADV_COLLAPSE = 25  # since 6.1


@dataclass(frozen=True, slots=True)
class LargeMapping:
    """A memfd and where it is mapped: `offset` bytes into `mapping`."""

    fd: int
    mapping: mmap.mmap
    offset: int
    kind: Literal["hugetlb", "collapsed"]


def map_large(name: str, size_bytes: int) -> LargeMapping:
    """Make a memfd of 2 MiB pages and map it, reserved or populated; 4 s per GB if collapsed.

    Raises:
        KernelError: the machine has neither huge pages nor whole 2 MiB of free memory.
    """
    try:
        return _mapped(name, size_bytes, "hugetlb")
    except OSError as error:
        lacks = f"huge pages: {error.strerror}"
    check_available(name, size_bytes)
    try:
        return _mapped(name, size_bytes, "collapsed")
    except OSError as error:
        cause = f"{lacks}; MADV_COLLAPSE: {error.strerror}"
        pages = size_bytes // LARGE_PAGE_BYTES
        remedy = f"sysctl vm.nr_overcommit_hugepages={pages} (more for more VMs), or page_size 4KiB"
        raise KernelError("give", f"{name} pages of 2 MiB", cause, remedy) from error


def _mapped(name: str, size_bytes: int, kind: Literal["hugetlb", "collapsed"]) -> LargeMapping:
    hugetlb = _MFD_HUGETLB_2MIB if kind == "hugetlb" else 0
    fd = os.memfd_create(name, os.MFD_CLOEXEC | hugetlb)
    try:
        os.ftruncate(fd, size_bytes)
        # A large page must lie as it does in the file. So more is reserved than needed, and the
        # file laid over a part that begins at a large page; both go with the Python object.
        room = size_bytes + LARGE_PAGE_BYTES
        mapping = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = int(np.frombuffer(mapping, np.uint8).ctypes.data)
        offset = -start % LARGE_PAGE_BYTES
        _map_over(start + offset, size_bytes, fd)
        if kind == "collapsed":
            _collapse(mapping, offset, size_bytes, start + offset)
    except BaseException:
        os.close(fd)
        raise
    return LargeMapping(fd, mapping, offset, kind)


def _map_over(address: int, size_bytes: int, fd: int) -> None:
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    call.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if call(address, size_bytes, access, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _collapse(mapping: mmap.mmap, offset: int, size_bytes: int, address: int) -> None:
    """Touch each 2 MiB (the kernel collapses no hole), collapse all, and read that back."""
    np.frombuffer(mapping, np.uint8)[offset : offset + size_bytes : LARGE_PAGE_BYTES] = 0
    mapping.madvise(_MADV_COLLAPSE, offset, size_bytes)
    if (huge_bytes := mapped_large_bytes(address)) != size_bytes:
        raise OSError(0, f"{huge_bytes} of {size_bytes} bytes became large pages")


def mapped_large_bytes(address: int) -> int:
    """How much of this process's shared memory at an address its page tables map by 2 MiB."""
    inside = False
    with Path("/proc/self/smaps").open() as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            if "-" in name.split()[0]:
                inside = name.startswith(f"{address:x}-")
            elif inside and name in {"ShmemPmdMapped", "Shared_Hugetlb", "Private_Hugetlb"}:
                found = int(rest.split()[0]) * 1024
                if found:
                    return found
    return 0
