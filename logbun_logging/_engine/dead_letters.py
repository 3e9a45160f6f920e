"""Scans of the dead-letter queue: which files are tried, and what becomes of each.

What is in the database leaves a file, the rest stays. An attempt counts against a file only for its
own sake:

- An outage never counts, and after two in a row nothing more of that database is tried.
- What looks like an outage, while the database takes other events, counts. The next scan delivers
  the file in smaller pieces, until only the rows are left on which it happens.
- An error that says nothing of the rows counts if the database has taken an event since the file
  failed last.
- The scans of several processes count as one: a file that has failed is left alone for
  ``retry.scan_interval``.

Whoever asks by hand has every file tried at once. That counts by the same rules, so that workers
which all ask by a timer give no file up early. A file that is asked for by its name is always
tried, and each failure but an outage counts.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from datetime import datetime
from typing import Final

import msgspec

from logbun_logging._engine.dead_letter_delivery import FileDelivery, Health
from logbun_logging._engine.delivery import Delivery, Verdict
from logbun_logging._engine.reporting import Reporter
from logbun_logging._process.counters import Counters
from logbun_logging._storage.dlq import DeadLetterQueue, Envelope, State
from logbun_logging.event import utc_timestamp
from logbun_logging.options import RetryOptions

__all__ = ["DeadLetterScanner"]

#: The part of ``scan_interval`` after which a file that has failed is tried again: scans do not
#: come at the very second.
_DUE_AFTER: Final = 0.9

#: States in which a file may be tried by name: the last one, if whoever had it has died.
_CLAIMABLE: Final[tuple[State, ...]] = ("pending", "dead", "processing")


class _Scan:
    """What one scan, or one try by hand, has found out so far."""

    def __init__(self, delivery: Delivery, *, by_hand: bool = False, named: bool = False) -> None:
        self.by_hand = by_hand or named
        self.named = named
        self.began = time.time()
        self.health = Health(delivery)
        self.inserted = 0
        self.removed = False
        #: Files of which it is not known yet whether an outage is their own fault: still claimed.
        self.unclear: list[FileDelivery] = []


class DeadLetterScanner:
    """Tries dead letters.

    Args:
        dlq: where they are.
        delivery: inserts them.
        retry: times and bounds of the scans.
        tenant_required: events without a tenant are never delivered.
        counters: what happened.
        reporter: told of problems.
        stopping: set when a scan is to end.
    """

    def __init__(
        self,
        *,
        dlq: DeadLetterQueue,
        delivery: Delivery,
        retry: RetryOptions,
        tenant_required: bool,
        counters: Counters,
        reporter: Reporter,
        stopping: threading.Event,
    ) -> None:
        self._dlq = dlq
        self._delivery = delivery
        self._retry = retry
        self._tenant_required = tenant_required
        self._counters = counters
        self._reporter = reporter
        self._stopping = stopping
        #: Files that met an outage in the last scan, and when (monotonic seconds), where nothing
        #: showed whether the database takes other events. Written by scans, one at a time.
        self._suspects: dict[str, float] = {}

    def scan(self, *, by_hand: bool = False) -> int:
        """Try the waiting files once, oldest first; return how many events were inserted.

        Those that are damaged, or whose outages may be their own fault, come last. Never two scans
        at a time.
        """
        try:
            irregular, files = self._dlq.irregular(), self._dlq.waiting()
        except OSError as error:  # another user's folder: WAL and retention go on all the same
            self._failed(str(error.filename), error)
            return 0
        for name in irregular:
            self._reporter.report("redelivery_failed", file=name, reason="not a regular file")
        files.sort(key=lambda file: file.envelope is None or file.name in self._suspects)
        scan = _Scan(self._delivery, by_hand=by_hand)
        try:
            for file in files:
                if self._stopping.is_set():
                    break
                if self._may_be_tried(file.envelope, scan):
                    self._try(file.name, file.state, scan)
        finally:
            unclear = self._end(scan)
            self._suspects = {one.claim.name: max(one.outages.values()) for one in unclear}
        return scan.inserted

    def retry(self, name: str) -> int:
        """Try one file now, whatever its state; return how many events were inserted."""
        scan = _Scan(self._delivery, named=True)
        try:
            any(self._try(name, state, scan) for state in _CLAIMABLE)
        finally:
            self._end(scan)
        return scan.inserted

    def _may_be_tried(self, envelope: Envelope | None, scan: _Scan) -> bool:
        if scan.health.keeps_out(envelope):
            return False
        return scan.by_hand or envelope is None or self._is_due(envelope, scan.began)

    def _is_due(self, envelope: Envelope, now: float) -> bool:
        if not envelope.attempts:
            return True
        age = _age(envelope.last_failed_at, now)  # below 0 if the clock was set back
        return not 0 <= age < _DUE_AFTER * self._retry.scan_interval

    def _try(self, name: str, state: State, scan: _Scan) -> bool:
        """Try one file; return False if it could not be claimed.

        What goes wrong with it is reported, and keeps no other from being tried.
        """
        claim = None
        try:
            claim = self._dlq.claim(name, state)
            if claim is None:
                return False
            one = FileDelivery(
                claim,
                self._delivery,
                scan.health,
                tenant_required=self._tenant_required,
                stopped=self._stopping.is_set,
            )
            if self._may_be_tried(one.envelope, scan):  # it may have changed since it was listed
                one.run()
                scan.inserted += one.inserted
                found = one.inserted
                self._counters.add_all({"inserted": found, "redelivered": found})
                scan.unclear.append(one)
            else:
                claim.put_back()
        except Exception as error:
            self._failed(name, error)
            if claim is not None:
                claim.put_back()
        scan.unclear = [one for one in scan.unclear if not self._settle(one, scan)]
        return True

    def _end(self, scan: _Scan) -> list[FileDelivery]:
        """Settle what is left; return those whose outage may have been a real one."""
        for one in scan.unclear:
            self._write(one, scan, counts=False)
        if scan.removed:
            with suppress(OSError):
                self._dlq.sync()
        return scan.unclear

    def _settle(self, one: FileDelivery, scan: _Scan) -> bool:
        """Write what came of a file; return False if it is not known yet whether that counts."""
        if one.outages and not self._took_others(one):
            return False
        counts = not one.complete and bool(one.verdicts) and self._counts(one, scan)
        self._write(one, scan, counts=counts)
        return True

    def _took_others(self, one: FileDelivery) -> bool:
        """Tell whether the databases have taken other events since the file met an outage.

        Where several such files follow each other, that shows only at the next scan.
        """
        before = self._suspects.get(one.claim.name)
        return all(
            self._delivery.stored_since(tenant, moment)
            or (before is not None and self._delivery.stored_since(tenant, before))
            for tenant, moment in one.outages.items()
        )

    def _counts(self, one: FileDelivery, scan: _Scan) -> bool:
        if scan.named:
            return True
        if not self._is_due(one.envelope, scan.began):
            return False
        if one.verdicts != {Verdict.FAILED}:
            return True
        age = max(0.0, _age(one.envelope.last_failed_at, time.time()))
        moment = time.monotonic() - age
        return one.inserted > 0 or any(
            self._delivery.stored_since(tenant, moment) for tenant in one.tenants
        )

    def _write(self, one: FileDelivery, scan: _Scan, *, counts: bool) -> None:
        """Remove a file, write what is left of it, or put it back as it was."""
        claim = one.claim
        try:
            if one.complete:
                claim.done()
                scan.removed = True
            elif counts or one.inserted:
                self._write_rest(one, scan, counts=counts)
            elif one.verdicts:
                self._reporter.report(
                    "redelivery_failed",
                    tenant_id=one.envelope.tenant_id,
                    file=claim.name,
                    reason=one.reason,
                )
        except Exception as error:
            self._failed(claim.name, error)
        finally:
            claim.put_back()
        if claim.corrupt is not None:
            self._counters.add("corrupt", claim.damaged)
            self._reporter.report("corrupt", records=claim.damaged, file=str(claim.corrupt))

    def _write_rest(self, one: FileDelivery, scan: _Scan, *, counts: bool) -> None:
        envelope, outage = one.envelope, bool(one.outages)
        attempts = envelope.attempts + counts
        failed = msgspec.structs.replace(
            envelope,
            attempts=attempts,
            outages=envelope.outages + (counts and outage),
            reason=(one.reason or envelope.reason)[:2000],
            last_failed_at=utc_timestamp(scan.began) if counts else envelope.last_failed_at,
            tenant_required=envelope.tenant_required or one.tenant_missing,
        )
        dead = counts and attempts >= self._retry.max_scan_attempts and one.tried_all
        # What looks like an outage is one row's fault: no other is given up with it. Nor is a row
        # that has met few of them, in a file that has failed often for another tenant's rows.
        enough = one.piece == 1 and failed.outages >= self._retry.max_scan_attempts
        dead = dead and (not outage or enough)
        events = one.claim.fail(failed, one.keeps, dead=dead)
        if dead:
            self._counters.add("poisoned", events)
        if counts:
            self._reporter.report(
                "poisoned" if dead else "redelivery_failed",
                tenant_id=envelope.tenant_id,
                events=events,
                attempts=attempts,
                file=one.claim.name,
                reason=one.reason,
            )

    def _failed(self, name: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        self._reporter.report("redelivery_failed", file=name, reason=reason)


def _age(moment: str, now: float) -> float:
    """Return how long ago *moment* (ISO 8601) was, in seconds; infinite if it is no time."""
    try:
        return now - datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return math.inf
