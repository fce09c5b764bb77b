"""A guest at both ends of a veth, right after resume: some of its pages are at the source only."""

from __future__ import annotations

import os
import pickle
import secrets
import select
import signal
import socket
import subprocess
import time
import traceback
from contextlib import ExitStack

import numpy as np

from testbed.guest import layout
from testbed.guest.machine import Guest
from testbed.guest.memory import GuestMemory
from testbed.guest.tasks.build import build
from testbed.kernel import netns
from testbed.migration.post_copy import Fetching, Serving
from testbed.migration.resume_file import ResumeFile
from testbed.migration.specification import MigrationSpec
from testbed.migration.stream import Stream

A, B = "10.98.1.1", "10.98.1.2"


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


class Wire:
    """Two namespaces and a veth between them; a context manager."""

    def __init__(self, test):
        self._names = [f"tb-{test}-{os.getpid()}-{end}" for end in "ab"]

    def __enter__(self):
        with ExitStack() as undo:
            for name in self._names:
                run("ip", "netns", "add", name)
                undo.callback(run, "ip", "netns", "del", name)
            far = ["type", "veth", "peer", "name", "eth0", "netns", self._names[1]]
            run("ip", "-n", self._names[0], "link", "add", "eth0", *far)
            for name, address in zip(self._names, (A, B), strict=True):
                run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
                run("ip", "-n", name, "link", "set", "eth0", "up")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def shape(self, rate):
        """What the source may send."""
        tc = ["tc", "-n", self._names[0]]
        run(*tc, "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1")
        sizes = ["rate", rate, "burst", "16k", "cburst", "16k"]
        run(*tc, "class", "add", "dev", "eth0", "parent", "1:", "classid", "1:1", "htb", *sizes)

    def cut(self):
        run("ip", "-n", self._names[0], "link", "set", "eth0", "down")

    def connect(self, count):
        """Pairs of connected sockets, the source's first."""
        pairs = []
        with ExitStack() as undo:
            with netns.inside(self._names[1]):
                listener = undo.enter_context(socket.create_server((B, 8000)))
            for _ in range(count):
                with netns.inside(self._names[0]):
                    source = socket.create_connection((B, 8000), 5)
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pairs.append((source, listener.accept()[0]))
                pairs[-1][1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return pairs


def specification(guest, timeout_ns=3_000_000_000):
    secret = secrets.token_bytes(32)
    return MigrationSpec(time.time_ns() // 1000, secret, guest, A, B, timeout_ns=timeout_ns)


class Source:
    """The source, a process of its own: runs the guest until it is to be suspended, then serves.

    `pages` of `read` are its memory as it is then.
    """

    def __init__(self, spec, pairs, resume_file, ready, serve=None):
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            mine.close()
            try:
                for _, theirs in pairs:
                    theirs.close()
                self._live(its, spec, [ours for ours, _ in pairs], resume_file, ready, serve)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        its.close()
        for ours, _ in pairs:
            ours.close()
        self._socket = mine
        self._memory_pid, self._fd = self.told()

    @staticmethod
    def _live(its, spec, sockets, resume_file, ready, serve):  # noqa: PLR0917
        def tell(what):
            its.send(pickle.dumps(what))

        streams = [Stream(sock, spec.timeout_ns) for sock in sockets]
        with Guest.power_on(spec.guest) as guest, ExitStack() as undo:
            deadline = time.monotonic() + 20
            while not ready(guest):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            guest.suspend()
            file = None
            if resume_file:
                file = undo.enter_context(ResumeFile.create(resume_file, spec))
            tell((os.getpid(), guest.memory.fd))
            missing = pickle.loads(its.recv(1 << 21))
            if serve is not None:
                serve(streams)
            serving = Serving(streams, guest, missing, file)
            try:
                tell(serving.run())
            except Exception as error:
                tell(error)
            its.recv(1)

    def read(self):
        return np.fromfile(f"/proc/{self._memory_pid}/fd/{self._fd}", np.uint64).reshape(-1, 512)

    def go(self, missing):
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        self._socket.send(pickle.dumps(missing))

    def told(self, seconds=20):
        assert select.select([self._socket], [], [], seconds)[0], "nothing was told"
        return pickle.loads(self._socket.recv(1 << 20))

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def close(self):
        self.kill()
        os.waitpid(self.pid, 0)
        self._socket.close()


class Moved:
    """A guest at the destination, this process, that lacks pages; a context manager.

    `missing` chooses them from the data pages, given a generator.
    """

    def __init__(
        self,
        spec,
        wire,
        missing,
        *,
        streams=1,
        resume_file="",
        ready,
        serve=None,
        turn=None,
        tracking=None,
    ):
        with ExitStack() as undo:
            pairs = wire.connect(streams)
            self.source = Source(spec, pairs, resume_file, ready, serve)
            undo.callback(self.source.close)
            self.streams = [Stream(sock, spec.timeout_ns) for _, sock in pairs]
            for stream in self.streams:
                undo.callback(stream.close)
            self.before = self.source.read()
            self.spec = spec.guest
            first = layout.first_data_page(spec.guest.vcpus)
            rows = missing(np.random.default_rng(3), len(self.before) - first)
            self.missing = np.flatnonzero(rows) + first
            self.guest = undo.enter_context(Guest.create_masked(spec.guest, tracking=tracking))
            there = np.setdiff1d(np.arange(len(self.before)), self.missing)
            self.guest.memory.words[there] = self.before[there]
            file = undo.enter_context(ResumeFile.open(resume_file, spec)) if resume_file else None
            self.fetching = Fetching(self.guest, file, turn=turn or (lambda: None))
            self._undo = undo.pop_all()

    def resume(self):
        self.fetching.prepare(self.missing)
        self.source.go(self.missing)
        self.guest.resume()

    def different(self):
        """Pages that aren't what the workloads have made of the source's memory since then."""
        self.guest.suspend()
        before = layout.task_records(
            memoryview(self.before).cast("B"), self.spec.vcpus, len(self.spec.workloads)
        )
        after = self.guest.task_counters()
        with GuestMemory("again", self.spec.memory_bytes) as again:
            again.words[:] = self.before
            for vcpu in range(self.spec.vcpus):
                for given, task in build(self.spec, vcpu, again):
                    done = (rows["batches"][given.number, vcpu] for rows in (before, after))
                    for batch in range(*done):
                        task.write(again, batch)
                    del given, task
            data = slice(layout.first_data_page(self.spec.vcpus), None)
            wrong = (again.words[data] != self.guest.memory.words[data]).any(axis=1)
        return int(np.count_nonzero(wrong))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._undo.close()
