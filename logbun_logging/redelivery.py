"""The maintenance thread: everything that brings events back that did not go straight through.

It adopts the WAL folders of dead processes, reads back what was parked in our own, and scans the
DLQ: soon after the start, at every interval, and as soon as a database that was down takes events
again. Only one pass runs at a time, whoever asks for it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from logbun_logging.batching import Buffers
from logbun_logging.dlq import DeadLetterQueue
from logbun_logging.dlq_scan import DlqScanner
from logbun_logging.event import Entry
from logbun_logging.files import remove_leftovers
from logbun_logging.options import RetryOptions
from logbun_logging.reporting import Reporter
from logbun_logging.stats import Counters
from logbun_logging.wal import AdoptedLog, Segment, WalWriter, adopt_abandoned, read_segment

__all__ = ["Redelivery"]

#: How often recovery looks whether there is room again, in seconds.
_LOOK = 0.02

#: Recovered events that are let in together, between two looks at the database's health.
_PORTION = 64

#: How long the DLQ is left alone when it takes nothing, in seconds.
_REFUSED_PAUSE = 5.0

#: How often the thread looks whether something has to be done, in seconds.
_TICK = 0.5


class Redelivery:
    """Recovery and DLQ scans of one process.

    Args:
        folder: the namespace's folder.
        buffers: recovered events go the way of all others.
        dlq: where dead letters are.
        scanner: tries them.
        wal: our own log.
        retry: times and bounds of the scans.
        bootstrap: opens the database; returns whether it is open.
        healthy: tells whether the database takes events.
        counters: what happened.
        reporter: told of problems.
        tend: called at every look.
        stopping: set when the thread is to end.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        folder: Path,
        buffers: Buffers,
        dlq: DeadLetterQueue,
        scanner: DlqScanner,
        wal: WalWriter,
        retry: RetryOptions,
        bootstrap: Callable[[], bool],
        healthy: Callable[[], bool],
        counters: Counters,
        reporter: Reporter,
        tend: Callable[[], None] = lambda: None,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._buffers = buffers
        self._dlq = dlq
        self._scanner = scanner
        self._wal = wal
        self._retry = retry
        self._bootstrap = bootstrap
        self._healthy = healthy
        self._counters = counters
        self._reporter = reporter
        self._tend = tend
        self._clock = clock
        self._pass_lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = stopping
        self._scan_soon = False
        self._scanning = False
        self._adopted: list[AdoptedLog] = []
        self._thread: threading.Thread | None = None
        self._read_parked_at = -math.inf
        self.recovering = False

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the interpreter is ending and starts no more threads.
        """
        self.recovering = True
        thread = threading.Thread(target=self._run, name="logbun-maintenance", daemon=True)
        thread.start()
        self._thread = thread

    def scan_soon(self) -> None:
        """Ask for a DLQ scan now: the database is back."""
        self._scan_soon = True
        self._wake.set()

    @property
    def scanning(self) -> bool:
        """A scan that was asked for has not ended yet."""
        return self._scan_soon or self._scanning

    def parked(self) -> int:
        """Return how many records wait in WAL files alone, to be read back."""
        adopted = sum(
            len(segment.parked) for log in [*self._adopted] for segment in [*log.segments]
        )
        return self._wal.parked() + adopted

    def held_up(self) -> bool:
        """Tell whether what is parked waits for room in the DLQ, which has not taken it.

        It is read back again after a pause, and as soon as a file leaves the DLQ.
        """
        pause = time.monotonic() < self._read_parked_at + _REFUSED_PAUSE
        return pause and self._dlq.refused_at >= self._read_parked_at

    def nudge(self) -> None:
        """Look now whether something has to be done."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread; adopted folders that are not done are left to others."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        for log in self._adopted:
            log.release()
            log.abandon()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's locks."""
        for log in self._adopted:
            log.abandon()
        self._dlq.abandon()

    def run_pass(self) -> bool:
        """Recover and scan once; return False if a pass is running already."""
        if not self._pass_lock.acquire(blocking=False):
            return False
        try:
            self._recover()
            self._scan(by_hand=True)
        finally:
            self._pass_lock.release()
            self._release()
        return True

    def _run(self) -> None:
        next_scan = self._clock() + self._retry.first_scan
        next_adoption = self._clock()
        pause = 0.0
        while not self._stopping.is_set():
            try:
                self._tend()
                self._release()
                opened = self._bootstrap()
                now = self._clock()
                with self._pass_lock:
                    if now >= next_adoption:
                        next_adoption = now + self._retry.scan_interval
                        self._recover()
                    elif opened and not self.held_up():
                        self._read_parked()
                    if now >= next_scan or (self._scan_soon and opened):
                        next_scan = now + self._retry.scan_interval
                        self._scan()
                pause = _TICK
            except Exception as error:  # the thread must outlive whatever a disk can do
                pause = min(30.0, max(1.0, pause * 2))
                reason = f"{type(error).__name__}: {error}"
                self._reporter.report("maintenance_failed", logging.ERROR, reason=reason)
            self._wake.wait(pause)
            self._wake.clear()

    # ── the WAL ──

    def _recover(self) -> None:
        try:
            for log in adopt_abandoned(self._folder / "wal", self._wal.instance):
                self._adopted.append(log)
                for segment in [*log.segments]:
                    if not self._read(segment):
                        return
                    log.release()
            for log in self._adopted:
                for segment in [*log.segments]:
                    if segment.unread and not self._read(segment):  # it could not be read before
                        return
            for folder in (self._folder, self._folder / "wal", self._folder / "dlq"):
                remove_leftovers(folder)
            self._read_parked()
        finally:
            self.recovering = False

    def _read_parked(self) -> None:
        """Read back what was left to the WAL alone, now that there is room and a database."""
        if not self._buffers.spacious() or not self._healthy():
            return
        adopted = [segment for log in self._adopted for segment in log.segments]
        self._read_parked_at = time.monotonic()
        for segment in (
            *self._wal.take_parked(),
            *(found for found in adopted if found.parked and not found.unread),
        ):
            if not self._read(segment):
                return

    def _read(self, segment: Segment) -> bool:
        """Let into memory what only the segment's file has; return False if we are to stop."""
        parked = len(segment.parked)
        wanted = None if segment.unread else {*segment.parked}
        known = {entry.payload for entry in [*segment.pending]}
        entries = read_segment(segment, self._damaged)
        problem: OSError | None = None
        while problem is None:
            portion: list[Entry] = []
            try:
                portion.extend(islice(entries, _PORTION))
            except OSError as error:  # what was read before is in the portion
                problem = error
            if not portion:
                break
            fresh = [
                entry
                for entry in portion
                if entry.payload not in known and (wanted is None or hash(entry.payload) in wanted)
            ]
            left = self._readmit(fresh)
            for entry in {*portion}.difference(fresh) | {*left}:
                segment.pending.pop(entry, None)  # it is in the file alone, as before
            if left:
                return False
        if problem is not None:  # the other files are to be had
            reason = f"{type(problem).__name__}: {problem}"
            self._reporter.report("recovery_failed", logging.ERROR, reason=reason)
            return True
        self._wal.unpark(segment, parked)
        return True

    def _release(self) -> None:
        for log in [*self._adopted]:
            if log.release():
                self._adopted.remove(log)

    def _readmit(self, entries: Sequence[Entry]) -> deque[Entry]:
        """Let recovered entries into memory as there is room; return what is left if we stop."""
        waiting = deque(entries)
        while waiting and not self._stopping.is_set():
            admitted: list[Entry] = []
            if not self._healthy():
                self._bootstrap()  # a record is nowhere safer than in the WAL: it waits there
            elif self._buffers.spacious():
                refused: dict[str | None, list[Entry]] = {}  # one tenant's holds up no other's
                while waiting and not (admitted and self._buffers.would_wait(waiting[0])):
                    entry = waiting.popleft()
                    if entry.tenant_id in refused or self._buffers.readmit(entry) != "admitted":
                        refused.setdefault(entry.tenant_id, []).append(entry)
                    else:
                        admitted.append(entry)
                for left in refused.values():
                    waiting.extendleft(reversed(left))
                self._buffers.put(admitted)
            if waiting and not admitted:
                self._stopping.wait(_LOOK)
        return waiting

    def _damaged(self, path: Path, records: int) -> None:
        self._counters.add("corrupt", records)
        self._reporter.report("corrupt", logging.ERROR, records=records, file=str(path))

    # ── the DLQ ──

    def _scan(self, *, by_hand: bool = False) -> int:
        """Try the dead letters; never two scans at a time."""
        self._scanning, self._scan_soon = True, False
        try:
            return self._scanner.scan(by_hand=by_hand)
        finally:
            self._scanning = False

    def retry(self, name: str | None = None) -> int:
        """Try one dead letter, pending or dead, or all pending ones, now.

        Returns how many events were inserted.
        """
        if name is not None:
            return self._scanner.retry(name)
        with self._pass_lock:
            return self._scan(by_hand=True)
