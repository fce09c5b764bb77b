"""Whoever hears that a thread of a post-copy has ended finds it so, and need not look again."""

from __future__ import annotations

import os
import select
import socket
import time

from testbed.migration import post_copy_threads
from testbed.migration.post_copy_threads import StreamThreads
from testbed.migration.stream import Stream


def test_when_the_bell_rings_the_thread_counts_as_ended(monkeypatch):
    ring = os.eventfd_write

    def ring_and_dawdle(fd, value):
        ring(fd, value)
        time.sleep(0.2)

    monkeypatch.setattr(post_copy_threads.os, "eventfd_write", ring_and_dawdle)
    near, far = socket.socketpair()
    with near, far:
        streams = [Stream(near, 10**9)]
        with StreamThreads(streams, lambda _: None, lambda: None, lambda: 0) as threads:
            assert select.select([threads.bell], [], [], 10)[0]
            assert threads.ended
