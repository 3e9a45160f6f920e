"""The maintenance thread: it brings back events that did not reach the database at once.

It opens the database, lets the recovery read WAL files back, and lets the scanner try the dead
letters: soon after the start, at every interval, and when a database that was down takes events
again. The invariant: one pass at a time, whichever thread makes it. The runtime starts and stops
it; the parts below it never call it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from logbun_logging._engine.dead_letters import DeadLetterScanner
from logbun_logging._engine.recovery import Recovery
from logbun_logging._engine.reporting import Reporter
from logbun_logging._engine.threads import Threads
from logbun_logging._process.counters import Counters
from logbun_logging._process.worker import WorkerThread
from logbun_logging._storage.dlq import DeadLetterQueue
from logbun_logging.options import RetryOptions

__all__ = ["Maintenance"]

#: How long the DLQ is left alone after it has refused a file, in seconds.
_REFUSED_PAUSE = 5.0

#: How long a requested pass waits for the one under way, in seconds.
_PASS_WAIT = 1.0

#: Seconds between two ticks of the thread.
_TICK = 0.5


class Maintenance:
    """Recovery and DLQ scans of one process.

    Application threads call :meth:`run_pass`, :meth:`retry`, :meth:`wake` and
    :meth:`request_scan`; flush workers and callers of ``flush`` the last two as well.

    Args:
        recovery: reads WAL files back.
        dlq: where dead letters are.
        scanner: tries them.
        retry: times and bounds of the scans.
        open_database: opens the database unless it is open; returns whether it is.
        counters: what happened.
        reporter: told of problems.
        maintain: called once a tick.
        stopping: set when the thread is to end.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        recovery: Recovery,
        dlq: DeadLetterQueue,
        scanner: DeadLetterScanner,
        retry: RetryOptions,
        open_database: Callable[[], bool],
        counters: Counters,
        reporter: Reporter,
        maintain: Callable[[], None] = lambda: None,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recovery = recovery
        self._dlq = dlq
        self._scanner = scanner
        self._retry = retry
        self._open_database = open_database
        self._counters = counters
        self._reporter = reporter
        self._maintain = maintain
        self._clock = clock
        self._pass_lock = threading.Lock()  # held during a pass
        self._wake = threading.Event()
        self._stopping = stopping
        # Two flags that any thread reads and, as single assignments, writes without a lock. A scan
        # sets the second before it clears the first, so that a reader always sees one of them.
        self._scan_requested = False
        self._scanning = False
        self._worker: WorkerThread | None = None  # written by start alone

    def start(self, threads: Threads) -> None:
        """Start the thread."""
        self._recovery.running = True
        self._worker = threads.start("logbun-maintenance", self._run)

    @property
    def running(self) -> bool:
        """There is a thread."""
        return self._worker is not None and self._worker.alive

    def request_scan(self) -> None:
        """Ask for a DLQ scan now, for example because the database is back."""
        self._scan_requested = True
        self._wake.set()

    @property
    def scanning(self) -> bool:
        """A requested scan has not ended yet."""
        return self._scan_requested or self._scanning

    def waits_for_dlq(self) -> bool:
        """Tell whether deferred records wait because the DLQ has refused them.

        They are read back again after a pause.
        """
        pause = time.monotonic() < self._recovery.read_deferred_at + _REFUSED_PAUSE
        return pause and self._dlq.refused_at >= self._recovery.read_deferred_at

    def wake(self) -> None:
        """Start the next tick now."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread; adopted folders with records left are given back."""
        self._stopping.set()
        self._wake.set()
        if self._worker is not None:
            self._worker.join(timeout)
        self._recovery.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptors that hold the parent's locks."""
        self._recovery.abandon()
        self._dlq.abandon()

    def run_pass(self) -> bool:
        """Recover and scan once; return False if a pass is running already.

        The thread holds the lock during a tick as well. A tick is short, so this waits for it.
        """
        if not self._pass_lock.acquire(timeout=_PASS_WAIT):
            return False
        try:
            self._recovery.run()
            self._scan(by_hand=True)
        finally:
            self._recovery.maintain()
            self._pass_lock.release()
        return True

    def read_back_here(self, deliver: Callable[[], None]) -> None:
        """Read deferred records back and deliver them, on this thread: no other one is left.

        Args:
            deliver: delivers what is in memory.
        """
        with self._pass_lock:
            self._recovery.read_deferred(deliver)
        deliver()

    def _run(self) -> None:
        next_scan = self._clock() + self._retry.first_scan
        next_adoption = self._clock()
        pause = 0.0
        while not self._stopping.is_set():
            try:
                self._maintain()
                opened = self._open_database()
                now = self._clock()
                with self._pass_lock:
                    self._recovery.maintain()
                    if self._recovery.running or now >= next_adoption:
                        next_adoption = now + self._retry.scan_interval
                        self._recovery.run()
                    elif opened and not self.waits_for_dlq():
                        self._recovery.read_deferred()
                    if now >= next_scan or (self._scan_requested and opened):
                        next_scan = now + self._retry.scan_interval
                        self._scan()
                pause = _TICK
            except BaseException as error:  # a driver may raise anything
                pause = min(30.0, max(1.0, pause * 2))
                reason = f"{type(error).__name__}: {error}"
                self._reporter.report("maintenance_failed", reason=reason)
            self._wake.wait(pause)
            self._wake.clear()

    def _scan(self, *, by_hand: bool = False) -> int:
        """Try the dead letters; never two scans at a time."""
        self._scanning, self._scan_requested = True, False
        try:
            self._recovery.check()
            return self._scanner.scan(by_hand=by_hand)
        finally:
            self._scanning = False

    def retry(self, name: str | None = None) -> int:
        """Try one dead letter, pending or dead, or all pending ones, now.

        Returns how many events were inserted.
        """
        if name is not None:
            self._recovery.check()
            return self._scanner.retry(name)
        with self._pass_lock:
            return self._scan(by_hand=True)
