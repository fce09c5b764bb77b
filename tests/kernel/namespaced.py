"""Work in a network namespace of its own."""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import subprocess
import traceback


def in_a_namespace(work):
    """What `work` returns, in a process of its own with nothing but a loopback interface."""
    mine, its = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            assert ctypes.CDLL(None).unshare(0x40000000) == 0
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            its.sendall(pickle.dumps(work()))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    with mine, its:
        its.close()
        parts = b"".join(iter(lambda: mine.recv(1 << 20), b""))
        os.waitpid(pid, 0)
    assert parts, "it failed"
    return pickle.loads(parts)
