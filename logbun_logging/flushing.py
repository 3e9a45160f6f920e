"""The flush workers: from the buffers to the database, or to the DLQ.

A worker takes due lanes, tries to insert them, and settles every entry in one of three ways:
stored, dead-lettered, or left to the WAL. Only then is the entry acknowledged. Nothing here knows
SQL or the form of files.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from logbun_logging.batching import Buffers, Lane, Shipment
from logbun_logging.delivery import Delivery, Outcome, Verdict
from logbun_logging.dlq import DeadLetterQueue, DlqFullError
from logbun_logging.event import Entry
from logbun_logging.options import RetryOptions
from logbun_logging.reporting import Reporter
from logbun_logging.stats import Counters
from logbun_logging.wal import WalWriter

__all__ = ["Flusher"]

#: The longest pause between two tries, in seconds, whatever ``retry`` says.
_LONGEST_DELAY = 300.0

#: The pause between two tries while database, DLQ and WAL all fail, in seconds.
_NOWHERE_DELAY = 1.0


class Flusher:
    """Delivers what the buffers hold.

    Args:
        buffers: where events wait.
        delivery: inserts batches.
        dlq: takes what cannot be inserted.
        wal: told of everything that needs it no longer.
        retry: how often and when to try again.
        tenant_required: events without a tenant go to the DLQ.
        counters: what happened.
        reporter: told of problems.
        rng: returns a number from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        *,
        buffers: Buffers,
        delivery: Delivery,
        dlq: DeadLetterQueue,
        wal: WalWriter,
        retry: RetryOptions,
        tenant_required: bool,
        counters: Counters,
        reporter: Reporter,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._buffers = buffers
        self._delivery = delivery
        self._dlq = dlq
        self._wal = wal
        self._retry = retry
        self._tenant_required = tenant_required
        self._counters = counters
        self._reporter = reporter
        self._rng = rng
        self._threads: list[threading.Thread] = []
        #: Something was spilled that nobody has asked back yet.
        self.spilled = False

    def start(self, workers: int) -> None:
        """Start the worker threads.

        Raises:
            RuntimeError: the interpreter is ending and starts no more threads.
        """
        for number in range(workers):
            thread = threading.Thread(target=self._work, name=f"logbun-flush-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def running(self) -> bool:
        """There are worker threads."""
        return bool(self._threads)

    def stop(self, timeout: float) -> None:
        """Let the workers end; one that hangs in a driver is left behind."""
        self._buffers.close()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def run_here(self) -> None:
        """Deliver everything that is due on the calling thread, which is the last one left."""
        while shipment := self._buffers.take(0):
            self._deliver_safely(shipment)

    def _work(self) -> None:
        while (shipment := self._buffers.take(None)) is not None:
            self._deliver_safely(shipment)

    def _deliver_safely(self, shipment: Shipment) -> None:
        try:
            self._deliver(shipment)
        except Exception as error:  # a bug of ours must not end the worker, nor strand the lane
            outcome = Outcome(Verdict.FAILED, f"{type(error).__name__}: {error}")
            logging.getLogger("logbun_logging").exception("delivery failed")
            for lane, entries in shipment:
                if lane.in_flight is entries:
                    self._failed(lane, entries, outcome)

    def _deliver(self, shipment: Shipment) -> None:
        if self._tenant_required:
            shipment = self._refuse_tenantless(shipment)
        if not shipment:
            return
        outcome = self._delivery.attempt(
            [(lane.tenant_id, [entry.payload for entry in entries]) for lane, entries in shipment]
        )
        if outcome.verdict is Verdict.STORED:
            for lane, entries in shipment:
                self._wal.acknowledge(entries)
                self._buffers.settle(lane, entries)
        elif len(shipment) > 1 and outcome.verdict is not Verdict.OUTAGE:
            middle = len(shipment) // 2  # one tenant's rows are no other's problem
            self._deliver(shipment[:middle])
            self._deliver(shipment[middle:])
        else:
            for lane, entries in shipment:
                self._failed(lane, entries, outcome)

    def _failed(self, lane: Lane, entries: list[Entry], outcome: Outcome) -> None:
        self._reporter.report(
            "insert_failed",
            tenant_id=lane.tenant_id,
            events=len(entries),
            attempt=lane.attempt + 1,
            reason=outcome.reason,
        )
        if outcome.verdict is not Verdict.REFUSED and lane.attempt < self._retry.max_retries:
            self._counters.add("retried")
            delay = self._retry.base_delay * 2**lane.attempt * (0.9 + 0.2 * self._rng())
            self._buffers.retry_later(lane, entries, min(delay, _LONGEST_DELAY))
            return
        by_payload: dict[bytes, list[Entry]] = defaultdict(list)  # recovery may read a record twice
        for entry in entries:
            by_payload[entry.payload].append(entry)
        reasons: dict[str, list[Entry]] = defaultdict(list)
        if outcome.verdict is Verdict.OUTAGE:
            reasons[outcome.reason] = entries
        else:
            rest = self._delivery.bisect(lane.tenant_id, list(by_payload))
            for payload, why in rest:
                reasons[why.reason] += by_payload.pop(payload)
            for stored in by_payload.values():
                self._wal.acknowledge(stored)
        homeless: list[Entry] = []
        for reason, unsent in reasons.items():
            left = self._dead_letter(lane.tenant_id, unsent, reason)
            homeless += self._lose(left)
        if homeless:  # nothing can be written, which a full disk does to everything at once
            self._buffers.retry_later(lane, entries, _NOWHERE_DELAY, homeless)
            return
        self._buffers.settle(lane, entries)

    def _refuse_tenantless(self, shipment: Shipment) -> Shipment:
        kept: Shipment = []
        for lane, entries in shipment:
            if lane.tenant_id is not None:
                kept.append((lane, entries))
                continue
            self._counters.add("refused", len(entries))
            self._reporter.report("refused", events=len(entries), reason="no tenant_id")
            left = self._dead_letter(None, entries, "refused: require_tenant_id is on")
            self._counters.add("lost", len(left))
            self._buffers.settle(lane, entries)
        return kept

    def _lose(self, entries: list[Entry]) -> list[Entry]:
        """Count as lost what no WAL is going to keep; return the rest, which has to wait for it."""
        waiting = [entry for entry in entries if entry.segment is not None]
        self._counters.add("lost", len(entries) - len(waiting))
        return waiting

    def _dead_letter(
        self, tenant_id: str | None, entries: Sequence[Entry], reason: str
    ) -> list[Entry]:
        """Write entries to the DLQ, or else leave them to the WAL; return what neither takes."""
        try:
            name = self._dlq.put(tenant_id, [entry.payload for entry in entries], reason)
        except (OSError, DlqFullError) as error:
            left = [entry for entry in entries if not self._wal.park(entry)]
            self._counters.add("parked", len(entries) - len(left))
            self._reporter.report(
                "dlq_failed",
                logging.ERROR,
                tenant_id=tenant_id,
                parked=len(entries) - len(left),
                left=len(left),
                reason=f"{type(error).__name__}: {error}",
            )
            return left
        self._wal.acknowledge(entries)
        self._counters.add("dead_lettered", len(entries))
        self._reporter.report(
            "dead_lettered", tenant_id=tenant_id, events=len(entries), file=name, reason=reason
        )
        return []

    def spill(self, *, drop: bool) -> bool:
        """Relieve memory of what the database does not keep up with; called by the listener.

        What cannot be written to the DLQ goes back to its lane and is tried again. Returns whether
        anything was written there, and notes it in :attr:`spilled`.
        """
        failed = wrote = False
        for lane, entries in self._buffers.overfull():
            if failed:
                self._buffers.put_back(lane, entries)
                continue
            if drop:
                self._counters.add("dropped", len(entries))
                self._buffers.settle(lane, entries, free=False)
                continue
            try:
                name = self._dlq.put(
                    lane.tenant_id, [entry.payload for entry in entries], "spilled: queue full"
                )
            except (OSError, DlqFullError) as error:
                self._buffers.put_back(lane, entries)
                reason = f"{type(error).__name__}: {error}"
                self._reporter.report("spill_failed", logging.ERROR, reason=reason)
                failed = True
                continue
            self._wal.acknowledge(entries)
            self.spilled = wrote = True  # before it is settled: flush looks at both
            self._counters.add("spilled", len(entries))
            self._buffers.settle(lane, entries, free=False)
            self._reporter.report(
                "spilled", tenant_id=lane.tenant_id, events=len(entries), file=name
            )
        return wrote

    def give_up(self, lane: Lane, entries: list[Entry]) -> None:
        """Leave entries that were drained to the WAL, or else to the DLQ: there is no more time."""
        homeless = [entry for entry in entries if not self._wal.keeps(entry)]
        if homeless:
            left = self._dead_letter(lane.tenant_id, homeless, "shutdown before it was inserted")
            self._counters.add("lost", len(left))
        self._buffers.settle(lane, entries, free=False)
