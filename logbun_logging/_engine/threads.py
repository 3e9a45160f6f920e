"""The threads of a pipeline: named, guarded, counted when they die, and started again.

Nothing that a driver, a filter, a handler or a callback raises may end one of them, and a process
that is at its limit of threads for a moment may not be without them for good.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from logbun_logging._engine.reporting import Reporter
from logbun_logging._process.counters import Counters
from logbun_logging._process.worker import WorkerThread

__all__ = ["Threads"]

#: Seconds between two attempts to start what could not be started.
_AGAIN: Final = 1.0


class Threads:
    """Starts the threads of one pipeline, and keeps them running until they return.

    Args:
        counters: counts the threads that have died.
        reporter: hears of threads that died or could not be started.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        counters: Counters,
        reporter: Reporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._reporter = reporter
        self._clock = clock
        self._workers: list[WorkerThread] = []  # any thread appends; only maintain takes out
        self._maintaining = threading.Lock()  # only ever tried: nobody waits for it
        self._retry_at = 0.0
        self._closed = False
        #: Some threads could not be started yet.
        self.missing = False

    def start(self, name: str, run: Callable[[], None]) -> WorkerThread:
        """Return a thread that runs *run* until that returns.

        If it cannot be started now, :meth:`maintain` tries again.
        """
        worker = WorkerThread(name, run, self._died)
        self._start(worker)
        self._workers.append(worker)
        return worker

    def maintain(self) -> None:
        """Start what could not be started, about once a second, and what has ended untimely."""
        if self._closed or not self._maintaining.acquire(blocking=False):
            return
        try:
            if not self.missing or self._clock() >= self._retry_at:
                self._start_missing()
        finally:
            self._maintaining.release()

    def close(self) -> None:
        """Start nothing any more: the pipeline ends."""
        self._closed = True
        self.missing = False

    def _start_missing(self) -> None:
        missing = False
        for worker in [*self._workers]:
            if worker.done:
                self._workers.remove(worker)
            elif not worker.alive:
                if worker.started:
                    self._died(worker.name, None)
                missing = not self._start(worker) or missing
        self.missing = missing and not self._closed

    def _start(self, worker: WorkerThread) -> bool:
        if sys.is_finalizing():  # Python 3.11 would wait for the new thread for ever
            return False
        try:
            worker.start()
        except (RuntimeError, MemoryError) as error:
            if not _ends(error):
                if not self.missing:
                    reason = f"{type(error).__name__}: {error}"
                    self._reporter.report("start_failed", thread=worker.name, reason=reason)
                self.missing = True
                self._retry_at = self._clock() + _AGAIN
            return False
        return True

    def _died(self, name: str, error: BaseException | None) -> None:
        self._counters.add("threads_died")
        reason = "it has ended" if error is None else f"{type(error).__name__}: {error}"
        self._reporter.report("thread_died", thread=name, reason=reason)


def _ends(error: BaseException) -> bool:
    """Tell whether a thread could not be started because the interpreter ends.

    Python 3.12 and newer say so, sometimes before the main thread has ended.
    """
    return not threading.main_thread().is_alive() or "interpreter shutdown" in str(error)
