"""System calls that Python has no function for."""

from __future__ import annotations

import os

from testbed.kernel.syscalls import fork_sibling


def test_a_sibling_is_the_child_of_its_forker_s_parent() -> None:
    read_end, write_end = os.pipe()
    forker = os.fork()
    if not forker:
        try:
            if fork_sibling() == 0:
                # Python works in it as after os.fork: it allocates, and forks.
                inner = os.fork()
                if inner:
                    os.waitpid(inner, 0)
                    os.write(write_end, f"{os.getpid()} {os.getppid()}".encode())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(forker, 0)
    with open(read_end, "rb") as said:  # noqa: PTH123 - a descriptor
        sibling, parent = map(int, said.read().split())
    assert sibling != forker
    assert parent == os.getpid()
    assert os.waitpid(sibling, 0) == (sibling, 0)
