"""The maintenance thread: everything that brings events back that did not go straight through.

It adopts the WAL folders of dead processes, reads back what was deferred in our own, and scans the
DLQ: soon after the start, at every interval, and as soon as a database that was down takes events
again. Only one pass runs at a time, whoever asks for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from logbun_logging._engine.dead_letters import DlqScanner
from logbun_logging._engine.recovery import Recovery
from logbun_logging._engine.reporting import Reporter
from logbun_logging._engine.threads import Threads
from logbun_logging._process.counters import Counters
from logbun_logging._process.worker import WorkerThread
from logbun_logging._storage.dlq import DeadLetterQueue
from logbun_logging.options import RetryOptions

__all__ = ["Redelivery"]

#: How long the DLQ is left alone when it takes nothing, in seconds.
_REFUSED_PAUSE = 5.0

#: How long a pass that is asked for waits for the one under way, in seconds.
_PASS_WAIT = 1.0

#: How often the thread looks whether something has to be done, in seconds.
_TICK = 0.5


class Redelivery:
    """Recovery and DLQ scans of one process.

    Args:
        recovery: reads WAL files back.
        dlq: where dead letters are.
        scanner: tries them.
        retry: times and bounds of the scans.
        bootstrap: opens the database; returns whether it is open.
        counters: what happened.
        reporter: told of problems.
        maintain: called at every look.
        stopping: set when the thread is to end.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        recovery: Recovery,
        dlq: DeadLetterQueue,
        scanner: DlqScanner,
        retry: RetryOptions,
        bootstrap: Callable[[], bool],
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
        self._bootstrap = bootstrap
        self._counters = counters
        self._reporter = reporter
        self._maintain = maintain
        self._clock = clock
        self._pass_lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = stopping
        self._scan_soon = False
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

    def scan_soon(self) -> None:
        """Ask for a DLQ scan now: the database is back."""
        self._scan_soon = True
        self._wake.set()

    @property
    def scanning(self) -> bool:
        """A scan that was asked for has not ended yet."""
        return self._scan_soon or self._scanning

    def waits_for_dlq(self) -> bool:
        """Tell whether what is deferred waits for room in the DLQ, which has not taken it.

        It is read back again after a pause, and as soon as a file leaves the DLQ.
        """
        pause = time.monotonic() < self._recovery.read_deferred_at + _REFUSED_PAUSE
        return pause and self._dlq.refused_at >= self._recovery.read_deferred_at

    def wake(self) -> None:
        """Look now whether something has to be done."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread; adopted folders that are not done are left to others."""
        self._stopping.set()
        self._wake.set()
        if self._worker is not None:
            self._worker.join(timeout)
        self._recovery.close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's locks."""
        self._recovery.abandon()
        self._dlq.abandon()

    def run_pass(self) -> bool:
        """Recover and scan once; return False if a pass is running already.

        The thread itself looks at the WAL at each tick, which is no pass: that is waited for.
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

    def deliver_deferred(self, deliver: Callable[[], None]) -> None:
        """Read back what was deferred, and deliver it, on this thread: there is no other.

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
                opened = self._bootstrap()
                now = self._clock()
                with self._pass_lock:
                    self._recovery.maintain()
                    if self._recovery.running or now >= next_adoption:
                        next_adoption = now + self._retry.scan_interval
                        self._recovery.run()
                    elif opened and not self.waits_for_dlq():
                        self._recovery.read_deferred()
                    if now >= next_scan or (self._scan_soon and opened):
                        next_scan = now + self._retry.scan_interval
                        self._scan()
                pause = _TICK
            except BaseException as error:  # whatever a disk or an adapter can do
                pause = min(30.0, max(1.0, pause * 2))
                reason = f"{type(error).__name__}: {error}"
                self._reporter.report("maintenance_failed", reason=reason)
            self._wake.wait(pause)
            self._wake.clear()

    # ── the DLQ ──

    def _scan(self, *, by_hand: bool = False) -> int:
        """Try the dead letters; never two scans at a time."""
        self._scanning, self._scan_soon = True, False
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
