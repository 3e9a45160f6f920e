"""The flush workers: from the buffers to the database, or to the DLQ.

A worker takes due lanes, tries to insert them, and settles every entry in one of three ways:
stored, dead-lettered, or left to the WAL. Only then is the entry acknowledged. Nothing here knows
SQL or the form of files.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from logbun_logging._engine.delivery import Delivery, Outcome, Verdict
from logbun_logging._engine.packing import packed
from logbun_logging._engine.reporting import Reporter
from logbun_logging._engine.scheduler import Buffers
from logbun_logging._engine.tenant_queue import Lane, Shipment
from logbun_logging._engine.threads import Threads
from logbun_logging._process.counters import Counters
from logbun_logging._process.worker import WorkerThread
from logbun_logging._storage.dlq import DeadLetterQueue
from logbun_logging._storage.wal import WalWriter
from logbun_logging.event import Entry
from logbun_logging.options import RetryOptions

__all__ = ["Flusher"]

#: A batch that was not inserted, and why.
_Failure: TypeAlias = tuple[Lane, list[Entry], Outcome]

#: The longest pause between two tries, in seconds, whatever ``retry`` says.
_LONGEST_DELAY: Final = 300.0

#: The pause between two tries while database, DLQ and WAL all fail, in seconds.
_NOWHERE_DELAY: Final = 1.0

#: More workers than this do not stay when they have nothing to do.
_IDLE_WORKERS: Final = 8


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
        # The lock guards these; every worker writes them.
        self._lock = threading.Lock()
        self._workers: set[WorkerThread] = set()
        self._count = 0  # workers that have not been told to end
        self._busy = 0  # workers that have something to deliver
        self._threads: Threads | None = None  # written by start, as the next one
        self._most = 0
        #: Something was spilled that nobody has asked back yet.
        self.spilled = False

    def start(self, threads: Threads, most: int) -> None:
        """Start a worker. It starts the next one when it has got something to do, up to *most*."""
        self._threads = threads
        self._most = most
        self._start_worker()

    @property
    def running(self) -> bool:
        """There are worker threads."""
        return any(worker.alive for worker in [*self._workers])

    def stop(self, timeout: float) -> None:
        """Let the workers end; one that hangs in a driver is left behind."""
        self._buffers.close()
        deadline = time.monotonic() + timeout
        for worker in [*self._workers]:
            worker.join(max(0.0, deadline - time.monotonic()))

    def run_here(self) -> None:
        """Deliver everything that is due on the calling thread, which is the last one left."""
        while shipment := self._buffers.take(0):
            self._deliver_safely(shipment)

    def _start_worker(self) -> None:
        assert self._threads is not None  # noqa: S101 - for the type checker
        with self._lock:
            self._count += 1
        worker = self._threads.start("logbun-flush", self._work)
        with self._lock:
            self._workers = {found for found in self._workers if not found.done} | {worker}

    def _work(self) -> None:
        while (shipment := self._buffers.take(None)) is not None:
            self._deliver_beside_others(shipment)
            with self._lock:
                if self._count - self._busy > _IDLE_WORKERS:
                    self._count -= 1
                    return

    def _deliver_beside_others(self, shipment: Shipment) -> None:
        """Deliver while another worker waits for what comes next.

        An insert may take as long as the time-out, and that must hold up no other tenant. How many
        are made at the same time is for the buffers to say.
        """
        with self._lock:
            self._busy += 1
            alone = self._busy == self._count < self._most
        try:
            if alone:
                self._start_worker()
            self._deliver_safely(shipment)
        finally:
            with self._lock:
                self._busy -= 1

    def _deliver_safely(self, shipment: Shipment) -> None:
        """Deliver, and leave no batch without an owner, whatever goes wrong."""
        failed: list[_Failure] = []
        try:
            if shipment[0][0].unsent:
                for together in packed(shipment):
                    self._dead_letter_together(together)
            else:
                self._deliver(shipment, failed)
                self._all_failed(failed)
        except Exception as error:
            outcome = Outcome(Verdict.FAILED, f"{type(error).__name__}: {error}")
            self._reporter.report("delivery_failed", reason=outcome.reason)
            with suppress(Exception):  # it may be memory that is short, now as before
                for lane, entries in shipment:
                    if lane.in_flight is entries:
                        self._all_failed([(lane, entries, outcome)])
        finally:
            for lane, entries in shipment:  # unless it has an owner
                self._buffers.retry_later(lane, entries, _NOWHERE_DELAY)

    def _deliver(self, shipment: Shipment, failed: list[_Failure]) -> None:
        """Insert what can be inserted now, and add the rest to *failed*."""
        if self._tenant_required:
            shipment = self._refuse_tenantless(shipment)
        if not shipment:
            return
        tenant_id = shipment[0][0].tenant_id
        if self._delivery.is_down(tenant_id):
            outcome = Outcome(Verdict.OUTAGE, "the database is down")
            failed.extend((lane, entries, outcome) for lane, entries in shipment)
            return
        rows = sum(len(entries) for _, entries in shipment)
        size = self._delivery.batch_size(tenant_id)
        if rows > size:
            self._deliver_parts(shipment, size, failed)
            return
        outcome = self._delivery.attempt(
            [(lane.tenant_id, [entry.payload for entry in entries]) for lane, entries in shipment]
        )
        if outcome.verdict is Verdict.STORED:
            for lane, entries in shipment:
                self._wal.acknowledge(entries)
                self._buffers.settle(lane, entries, {"inserted": len(entries)})
        elif len(shipment) > 1 and outcome.verdict is not Verdict.OUTAGE:
            self._halve(shipment, failed)  # one tenant's rows are no other's problem
        else:
            failed.extend((lane, entries, outcome) for lane, entries in shipment)

    def _halve(self, shipment: Shipment, failed: list[_Failure]) -> None:
        middle = len(shipment) // 2
        self._deliver(shipment[:middle], failed)
        self._deliver(shipment[middle:], failed)

    def _deliver_parts(self, shipment: Shipment, size: int, failed: list[_Failure]) -> None:
        """Deliver what one insert does not take: lanes apart, and of one lane so many at a time."""
        if len(shipment) > 1:
            self._halve(shipment, failed)
            return
        ((lane, entries),) = shipment
        while len(entries) > size:
            part = entries[:size]
            outcome = self._delivery.attempt([(lane.tenant_id, [e.payload for e in part])])
            if outcome.verdict is not Verdict.STORED:
                failed.append((lane, entries, outcome))
                return
            self._wal.acknowledge(part)
            if not self._buffers.settle_part(lane, entries, entries[size:], {"inserted": size}):
                return
        self._deliver(shipment, failed)

    def _all_failed(self, failed: Sequence[_Failure]) -> None:
        """Try again later, or else save what can be saved of each batch and dead-letter the rest.

        Those that fail together are tried again together. Those that meet an outage share files.
        """
        jitter = 0.9 + 0.2 * self._rng()
        for lane, entries, outcome in failed:
            self._reporter.report(
                "insert_failed",
                tenant_id=lane.tenant_id,
                events=len(entries),
                attempt=lane.attempt + 1,
                reason=outcome.reason,
            )
            if outcome.verdict is not Verdict.REFUSED and lane.attempt < self._retry.max_retries:
                self._counters.add("retried")
                delay = self._retry.base_delay * 2**lane.attempt * jitter
                self._buffers.retry_later(lane, entries, min(delay, _LONGEST_DELAY))
            elif outcome.verdict is Verdict.OUTAGE and not self._is_suspect(lane):
                self._buffers.dead_letter_later(lane, entries, outcome.reason)
            else:
                self._save(lane, entries, suspect=outcome.verdict is Verdict.OUTAGE)

    def _is_suspect(self, lane: Lane) -> bool:
        """Tell whether what looks like an outage is the batch's own fault: other inserts work."""
        since = lane.failed_at if lane.attempt else lane.since
        return self._delivery.stored_since(lane.tenant_id, since)

    def _dead_letter_together(self, together: Shipment) -> None:
        fates = [Counter[str]() for _ in together]
        batches = [(lane.tenant_id, entries) for lane, entries in together]
        homeless = self._dead_letter(batches, together[-1][0].unsent, fates)
        for (lane, entries), left, fate in zip(together, homeless, fates, strict=True):
            self._settle(lane, entries, left, fate)

    def _settle(
        self, lane: Lane, entries: list[Entry], homeless: list[Entry], fates: Counter[str]
    ) -> None:
        """Settle a batch but for what neither DLQ nor WAL could take and a WAL is going to keep."""
        waiting = [entry for entry in homeless if entry.segment is not None]
        fates["lost"] += len(homeless) - len(waiting)
        if not waiting:
            self._buffers.settle(lane, entries, fates)
        elif self._buffers.settle_part(lane, entries, waiting, fates):
            # Nothing can be written, which a full disk does to everything at once.
            self._buffers.retry_later(lane, entries, _NOWHERE_DELAY)

    def _save(self, lane: Lane, entries: list[Entry], *, suspect: bool) -> None:
        """Insert what can be inserted of a failed batch, and dead-letter the rest by reason."""
        by_payload: dict[bytes, list[Entry]] = defaultdict(list)  # recovery may read a record twice
        for entry in entries:
            by_payload[entry.payload].append(entry)
        rest = self._delivery.bisect(lane.tenant_id, list(by_payload), suspect=suspect)
        unsent: dict[str, list[Entry]] = defaultdict(list)
        for payload, why in rest:
            unsent[why.reason] += by_payload.pop(payload)
        stored = [entry for found in by_payload.values() for entry in found]
        self._wal.acknowledge(stored)
        fates = Counter(inserted=len(stored))
        homeless: list[Entry] = []
        for reason, left in unsent.items():
            homeless += self._dead_letter([(lane.tenant_id, left)], reason, [fates])[0]
        self._settle(lane, entries, homeless, fates)

    def _refuse_tenantless(self, shipment: Shipment) -> Shipment:
        kept: Shipment = []
        for lane, entries in shipment:
            if lane.tenant_id is not None:
                kept.append((lane, entries))
                continue
            fates: Counter[str] = Counter()
            if not lane.attempt:  # or it is counted, and nothing could be written then
                fates["refused"] = len(entries)
                self._reporter.report("refused", events=len(entries), reason="no tenant_id")
            reason = "refused: require_tenant_id is on"
            (left,) = self._dead_letter([(None, entries)], reason, [fates], tenant_required=True)
            self._settle(lane, entries, left, fates)
        return kept

    def _dead_letter(
        self,
        batches: Sequence[tuple[str | None, Sequence[Entry]]],
        reason: str,
        fates: Sequence[Counter[str]],
        *,
        tenant_required: bool = False,
    ) -> list[list[Entry]]:
        """Write batches to one file of the DLQ, or else leave them to the WAL.

        Returns what neither takes of each, and adds to its *fates* what has become of the others.
        """
        try:
            name = self._dlq.put_together(
                [(tenant, [entry.payload for entry in entries]) for tenant, entries in batches],
                reason,
                tenant_required=tenant_required,
            )
        except Exception as error:  # a MemoryError, too
            left = [[e for e in entries if not self._wal.park(e)] for _, entries in batches]
            for (_, entries), rest, fate in zip(batches, left, fates, strict=True):
                fate["parked"] += len(entries) - len(rest)
            homeless = sum(map(len, left))
            self._reporter.report(
                "dlq_failed",
                **_whose(batches),
                parked=sum(len(entries) for _, entries in batches) - homeless,
                left=homeless,
                reason=f"{type(error).__name__}: {error}",
            )
            return left
        for (_, entries), fate in zip(batches, fates, strict=True):
            self._wal.acknowledge(entries)
            fate["dead_lettered"] += len(entries)
        events = sum(len(entries) for _, entries in batches)
        self._reporter.report(
            "dead_lettered", **_whose(batches), events=events, file=name, reason=reason
        )
        return [[] for _ in batches]

    def spill(self, *, drop: bool) -> bool:
        """Relieve memory of what the database does not keep up with; called by the listener.

        What cannot be written to the DLQ goes back to its lane and is tried again. Returns whether
        anything was written there, and notes it in :attr:`spilled`.
        """
        wrote = False
        waiting = {id(entries): (lane, entries) for lane, entries in self._buffers.overfull()}
        try:
            for together in packed([*waiting.values()]):
                if not drop:
                    self._spill(together)
                    wrote = True
                fate = "dropped" if drop else "spilled"
                for lane, entries in together:
                    del waiting[id(entries)]
                    self._buffers.settle(lane, entries, {fate: len(entries)}, free=False)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._reporter.report("spill_failed", reason=reason)
        finally:
            for lane, entries in waiting.values():
                self._buffers.put_back(lane, entries)
        return wrote

    def _spill(self, together: Shipment) -> None:
        batches = [(lane.tenant_id, [e.payload for e in entries]) for lane, entries in together]
        name = self._dlq.put_together(batches, "spilled: queue full")
        self.spilled = True  # before it is settled: flush looks at both
        for _, entries in together:
            self._wal.acknowledge(entries)
        events = sum(len(payloads) for _, payloads in batches)
        self._reporter.report("spilled", **_whose(batches), events=events, file=name)

    def leave(self, entry: Entry) -> bool:
        """Write one event to the DLQ, for another process to deliver; return success."""
        fate: Counter[str] = Counter(accepted=1)
        reason = "logged before the server forked its workers"
        (lost,) = self._dead_letter([(entry.tenant_id, [entry])], reason, [fate])
        fate["lost"] += len(lost)
        self._counters.add_all(fate)
        return not lost

    def give_up(self, together: Shipment) -> None:
        """Leave entries that were drained to the WAL, or else to the DLQ: there is no more time."""
        homeless = [
            (lane, entries, [entry for entry in entries if not self._wal.keeps(entry)])
            for lane, entries in together
        ]
        fates = [Counter(parked=len(entries) - len(left)) for _, entries, left in homeless]
        batches = [(lane.tenant_id, left) for lane, _, left in homeless if left]
        theirs = [fate for fate, (*_, left) in zip(fates, homeless, strict=True) if left]
        if batches:
            lost = self._dead_letter(batches, "shutdown before it was inserted", theirs)
            for fate, left in zip(theirs, lost, strict=True):
                fate["lost"] += len(left)
        for (lane, entries, _), fate in zip(homeless, fates, strict=True):
            self._buffers.settle(lane, entries, fate, free=False)


def _whose(batches: Sequence[tuple[str | None, Sequence[object]]]) -> dict[str, Any]:
    """Return what a report says of whose events they are."""
    if len(batches) == 1:
        return {"tenant_id": batches[0][0]}
    return {"tenants": len(batches)}
