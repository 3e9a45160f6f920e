"""The maintenance thread: everything that brings events back that did not go straight through.

It adopts the WAL folders of dead processes, reads back what was parked in our own, and scans the
DLQ: soon after the start, at every interval, and as soon as a database that was down takes events
again. Only one pass runs at a time, whoever asks for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from logbun_logging.batching import Buffers
from logbun_logging.delivery import Delivery, Verdict
from logbun_logging.dlq import Claim, DeadLetterQueue
from logbun_logging.event import Entry, utc_now
from logbun_logging.options import RetryOptions
from logbun_logging.reporting import Reporter
from logbun_logging.stats import Counters
from logbun_logging.wal import AdoptedLog, WalWriter, adopt_abandoned, read_segment

__all__ = ["Redelivery"]

#: Events that recovery lets into memory at a time; more gains nothing, and live events need room.
_WINDOW = 10_000

#: How often recovery looks whether there is room again, in seconds.
_LOOK = 0.02

#: How often the thread looks whether something has to be done, in seconds.
_TICK = 0.5


class Redelivery:
    """Recovery and DLQ scans of one process.

    Args:
        folder: the namespace's folder.
        buffers: recovered events go the way of all others.
        delivery: inserts dead-lettered batches.
        dlq: where those are.
        wal: our own log.
        retry: times and bounds of the scans.
        bootstrap: opens the database; returns whether it is open.
        healthy: tells whether the database takes events.
        tenant_required: batches without a tenant are never delivered.
        counters: what happened.
        reporter: told of problems.
        independent: each tenant has a database of its own.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        folder: Path,
        buffers: Buffers,
        delivery: Delivery,
        dlq: DeadLetterQueue,
        wal: WalWriter,
        retry: RetryOptions,
        bootstrap: Callable[[], bool],
        healthy: Callable[[], bool],
        tenant_required: bool,
        counters: Counters,
        reporter: Reporter,
        independent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._buffers = buffers
        self._delivery = delivery
        self._dlq = dlq
        self._wal = wal
        self._retry = retry
        self._bootstrap = bootstrap
        self._healthy = healthy
        self._independent = independent
        self._tenant_required = tenant_required
        self._counters = counters
        self._reporter = reporter
        self._clock = clock
        self._pass_lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._scan_soon = False
        self._adopted: list[AdoptedLog] = []
        self._thread: threading.Thread | None = None
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
        return self._scan_soon

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

    def run_pass(self) -> bool:
        """Recover and scan once; return False if a pass is running already."""
        if not self._pass_lock.acquire(blocking=False):
            return False
        try:
            self._recover()
            self._scan()
        finally:
            self._pass_lock.release()
        return True

    def _run(self) -> None:
        next_scan = self._clock() + self._retry.first_scan
        next_adoption = self._clock()
        pause = 0.0
        while not self._stopping.is_set():
            try:
                opened = self._bootstrap()
                now = self._clock()
                with self._pass_lock:
                    if now >= next_adoption:
                        self._recover()
                        next_adoption = now + self._retry.scan_interval
                    elif opened:
                        self._read_parked()
                    if now >= next_scan or (self._scan_soon and opened):
                        try:
                            self._scan()
                        finally:
                            self._scan_soon = False
                        next_scan = now + self._retry.scan_interval
                for log in [*self._adopted]:
                    if log.release():
                        self._adopted.remove(log)
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
                try:
                    for entry in log.entries(self._damaged):
                        if not self._readmit(entry):
                            return
                except OSError as error:
                    self._adopted.remove(log)
                    log.abandon()
                    self._reporter.report("recovery_failed", logging.ERROR, reason=str(error))
            self._read_parked()
        finally:
            self.recovering = False

    def _read_parked(self) -> None:
        """Read back what was left to our own WAL, now that there is room and a database."""
        if self._buffers.events > _WINDOW or not self._healthy():
            return
        for segment in self._wal.take_parked():
            if segment.path is None:
                continue
            parked = segment.parked
            known = {entry.payload for entry in [*segment.pending]}
            corrupt = segment.path.with_suffix(".corrupt")
            for entry in read_segment(segment, corrupt, self._damaged):
                if entry.payload in known:
                    segment.pending.pop(entry, None)
                elif not self._readmit(entry):
                    return
            self._wal.unpark(segment, parked)

    def _readmit(self, entry: Entry) -> bool:
        """Let a recovered entry into memory when there is room; False if we are to stop."""
        while not self._stopping.is_set():
            if self._buffers.events < _WINDOW and self._buffers.admit(entry) == "admitted":
                self._buffers.put([entry])
                self._counters.add("recovered")
                return True
            self._stopping.wait(_LOOK)
        return False

    def _damaged(self, path: Path, records: int) -> None:
        self._counters.add("corrupt", records)
        self._reporter.report("corrupt", logging.ERROR, records=records, file=str(path))

    # ── the DLQ ──

    def _scan(self) -> None:
        """Try every dead-lettered batch once, oldest first, except of databases that are down.

        Where all tenants share a database, one outage ends the scan. Where each has its own, it
        ends it for that tenant: the start of a file's name is the same for his files and no
        other's.
        """
        down: set[str] = set()
        for claim in self._dlq.claims():
            if self._stopping.is_set():
                claim.put_back()
                return
            tenant_part = claim.name.rsplit("_", 2)[0]
            if tenant_part in down:
                claim.put_back()
            elif not self._retry_file(claim):
                claim.put_back()
                if not self._independent:
                    return
                down.add(tenant_part)

    def _retry_file(self, claim: Claim) -> bool:
        """Try one file; return False, leaving it as it is, if the database is down."""
        envelope, payloads = claim.read()
        if not payloads:
            claim.done()
            return True
        tenant = envelope.tenant_id
        if tenant is None and self._tenant_required:
            rest, reason = payloads, "no tenant_id, and require_tenant_id is on"
        else:
            outcome = self._delivery.attempt([(tenant, payloads)])
            if outcome.verdict is Verdict.OUTAGE:
                self._reporter.report("redelivery_failed", tenant_id=tenant, reason=outcome.reason)
                return False
            left = (
                [] if outcome.verdict is Verdict.STORED else self._delivery.bisect(tenant, payloads)
            )
            rest = [payload for payload, _ in left]
            reason = left[-1][1] if left else ""
        self._counters.add("redelivered", len(payloads) - len(rest))
        if not rest:
            claim.done()
            return True
        attempts = envelope.attempts + 1
        dead = attempts >= self._retry.max_scan_attempts
        failed = msgspec.structs.replace(
            envelope, attempts=attempts, reason=reason[:2000], last_failed_at=utc_now()
        )
        claim.fail(failed, rest, dead=dead)
        if dead:
            self._counters.add("poisoned", len(rest))
        self._reporter.report(
            "poisoned" if dead else "redelivery_failed",
            logging.ERROR if dead else logging.WARNING,
            tenant_id=tenant,
            events=len(rest),
            attempts=attempts,
            file=claim.name,
            reason=reason,
        )
        return True
