"""Stream helpers: a thread for each stream of one end; the first stream has the caller's own."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Job: TypeAlias = "Callable[[int], None]"
_TURN_S = 0.05


class Stopped(Exception):  # noqa: N818 - no error of its own: another stream has one
    """Another stream has failed."""


class StreamHelpers:
    """Does the same on every stream at a time. A context manager; its end waits for all."""

    def __init__(self, count: int) -> None:
        """For so many streams: one thread fewer."""
        self._jobs: list[SimpleQueue[Job | None]] = [SimpleQueue() for _ in range(count - 1)]
        self._done: SimpleQueue[None] = SimpleQueue()
        self._lock = Lock()
        self._failure: BaseException | None = None
        self._threads = [
            Thread(target=self._serve, args=(n, jobs), name=f"stream-helper-{n}", daemon=True)
            for n, jobs in enumerate(self._jobs, 1)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, job: Job, turn: Callable[[], None]) -> None:
        """`job(number)` for each stream; returns when all are done.

        `turn` is called about twenty times a second while this thread waits for the others. A job
        has to call `check` as often.

        Raises:
            Exception: what the first that failed raised; the others have ended too.
        """
        for jobs in self._jobs:
            jobs.put(job)
        self._attempt(job, 0)
        for _ in self._jobs:
            self._wait(turn)
        if self._failure is not None:
            raise self._failure

    def check(self) -> None:
        """Go on only if no stream has failed.

        Raises:
            Stopped: one has.
        """
        if self._failure is not None:
            raise Stopped

    def close(self) -> None:
        """End the threads; a job that is under way is stopped at its next `check`."""
        with self._lock:
            self._failure = self._failure or Stopped()
        for jobs in self._jobs:
            jobs.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> StreamHelpers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, number: int, jobs: SimpleQueue[Job | None]) -> None:
        while (job := jobs.get()) is not None:
            self._attempt(job, number)
            self._done.put(None)

    def _attempt(self, job: Job, number: int) -> None:
        try:
            job(number)
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error

    def _wait(self, turn: Callable[[], None]) -> None:
        while True:
            try:
                return self._done.get(timeout=_TURN_S)
            except Empty:
                if self._failure is None:
                    self._attempt(lambda _: turn(), 0)
