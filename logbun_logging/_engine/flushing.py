"""The flush workers: from the buffers to the database, or to the DLQ.

A worker takes due queues, tries to insert them, and completes every entry in one of three ways:
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
from logbun_logging._engine.tenant_queue import BatchGroup, TenantQueue
from logbun_logging._engine.threads import Threads
from logbun_logging._process.counters import Counters
from logbun_logging._process.worker import WorkerThread
from logbun_logging._storage.dlq import DeadLetterQueue
from logbun_logging._storage.wal import WalWriter
from logbun_logging.event import Entry
from logbun_logging.options import RetryOptions

__all__ = ["Flusher"]

#: A batch that was not inserted, and why.
_Failure: TypeAlias = tuple[TenantQueue, list[Entry], Outcome]

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
        while group := self._buffers.take(0):
            self._deliver_safely(group)

    def _start_worker(self) -> None:
        assert self._threads is not None  # noqa: S101 - for the type checker
        with self._lock:
            self._count += 1
        worker = self._threads.start("logbun-flush", self._work)
        with self._lock:
            self._workers = {found for found in self._workers if not found.done} | {worker}

    def _work(self) -> None:
        while (group := self._buffers.take(None)) is not None:
            self._deliver_beside_others(group)
            with self._lock:
                if self._count - self._busy > _IDLE_WORKERS:
                    self._count -= 1
                    return

    def _deliver_beside_others(self, group: BatchGroup) -> None:
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
            self._deliver_safely(group)
        finally:
            with self._lock:
                self._busy -= 1

    def _deliver_safely(self, group: BatchGroup) -> None:
        """Deliver, and leave no batch without an owner, whatever goes wrong."""
        failed: list[_Failure] = []
        try:
            if group[0][0].unsent:
                for together in packed(group):
                    self._dead_letter_together(together)
            else:
                self._deliver(group, failed)
                self._all_failed(failed)
        except Exception as error:
            outcome = Outcome(Verdict.FAILED, f"{type(error).__name__}: {error}")
            self._reporter.report("delivery_failed", reason=outcome.reason)
            with suppress(Exception):  # it may be memory that is short, now as before
                for queue, entries in group:
                    if queue.in_flight is entries:
                        self._all_failed([(queue, entries, outcome)])
        finally:
            for queue, entries in group:  # unless it has an owner
                self._buffers.retry_later(queue, entries, _NOWHERE_DELAY)

    def _deliver(self, group: BatchGroup, failed: list[_Failure]) -> None:
        """Insert what can be inserted now, and add the rest to *failed*."""
        if self._tenant_required:
            group = self._refuse_tenantless(group)
        if not group:
            return
        tenant_id = group[0][0].tenant_id
        if self._delivery.is_down(tenant_id):
            outcome = Outcome(Verdict.OUTAGE, "the database is down")
            failed.extend((queue, entries, outcome) for queue, entries in group)
            return
        rows = sum(len(entries) for _, entries in group)
        size = self._delivery.batch_size(tenant_id)
        if rows > size:
            self._deliver_parts(group, size, failed)
            return
        outcome = self._delivery.attempt(
            [(queue.tenant_id, [entry.payload for entry in entries]) for queue, entries in group]
        )
        if outcome.verdict is Verdict.STORED:
            for queue, entries in group:
                self._wal.acknowledge(entries)
                self._buffers.complete(queue, entries, {"inserted": len(entries)})
        elif len(group) > 1 and outcome.verdict is not Verdict.OUTAGE:
            self._halve(group, failed)  # one tenant's rows are no other's problem
        else:
            failed.extend((queue, entries, outcome) for queue, entries in group)

    def _halve(self, group: BatchGroup, failed: list[_Failure]) -> None:
        middle = len(group) // 2
        self._deliver(group[:middle], failed)
        self._deliver(group[middle:], failed)

    def _deliver_parts(self, group: BatchGroup, size: int, failed: list[_Failure]) -> None:
        """Deliver more than one insert takes: each queue alone, at most *size* rows at a time."""
        if len(group) > 1:
            self._halve(group, failed)
            return
        ((queue, entries),) = group
        while len(entries) > size:
            part = entries[:size]
            outcome = self._delivery.attempt([(queue.tenant_id, [e.payload for e in part])])
            if outcome.verdict is not Verdict.STORED:
                failed.append((queue, entries, outcome))
                return
            self._wal.acknowledge(part)
            if not self._buffers.complete_part(queue, entries, entries[size:], {"inserted": size}):
                return
        self._deliver(group, failed)

    def _all_failed(self, failed: Sequence[_Failure]) -> None:
        """Try again later, or else save what can be saved of each batch and dead-letter the rest.

        Those that fail together are tried again together. Those that meet an outage share files.
        """
        jitter = 0.9 + 0.2 * self._rng()
        for queue, entries, outcome in failed:
            self._reporter.report(
                "insert_failed",
                tenant_id=queue.tenant_id,
                events=len(entries),
                attempt=queue.attempt + 1,
                reason=outcome.reason,
            )
            if outcome.verdict is not Verdict.REFUSED and queue.attempt < self._retry.max_retries:
                self._counters.add("retried")
                delay = self._retry.base_delay * 2**queue.attempt * jitter
                self._buffers.retry_later(queue, entries, min(delay, _LONGEST_DELAY))
            elif outcome.verdict is Verdict.OUTAGE and not self._is_suspect(queue):
                self._buffers.dead_letter_later(queue, entries, outcome.reason)
            else:
                self._save(queue, entries, suspect=outcome.verdict is Verdict.OUTAGE)

    def _is_suspect(self, queue: TenantQueue) -> bool:
        """Tell whether what looks like an outage is the batch's own fault: other inserts work."""
        since = queue.failed_at if queue.attempt else queue.since
        return self._delivery.stored_since(queue.tenant_id, since)

    def _dead_letter_together(self, together: BatchGroup) -> None:
        fates = [Counter[str]() for _ in together]
        batches = [(queue.tenant_id, entries) for queue, entries in together]
        homeless = self._dead_letter(batches, together[-1][0].unsent, fates)
        for (queue, entries), left, fate in zip(together, homeless, fates, strict=True):
            self._complete(queue, entries, left, fate)

    def _complete(
        self, queue: TenantQueue, entries: list[Entry], homeless: list[Entry], fates: Counter[str]
    ) -> None:
        """Complete a batch, except what nothing could take now and what a WAL file keeps."""
        waiting = [entry for entry in homeless if entry.segment is not None]
        fates["lost"] += len(homeless) - len(waiting)
        if not waiting:
            self._buffers.complete(queue, entries, fates)
        elif self._buffers.complete_part(queue, entries, waiting, fates):
            # Nothing can be written, which a full disk does to everything at once.
            self._buffers.retry_later(queue, entries, _NOWHERE_DELAY)

    def _save(self, queue: TenantQueue, entries: list[Entry], *, suspect: bool) -> None:
        """Insert what can be inserted of a failed batch, and dead-letter the rest by reason."""
        by_payload: dict[bytes, list[Entry]] = defaultdict(list)  # recovery may read a record twice
        for entry in entries:
            by_payload[entry.payload].append(entry)
        rest = self._delivery.bisect(queue.tenant_id, list(by_payload), suspect=suspect)
        unsent: dict[str, list[Entry]] = defaultdict(list)
        for payload, why in rest:
            unsent[why.reason] += by_payload.pop(payload)
        stored = [entry for found in by_payload.values() for entry in found]
        self._wal.acknowledge(stored)
        fates = Counter(inserted=len(stored))
        homeless: list[Entry] = []
        for reason, left in unsent.items():
            homeless += self._dead_letter([(queue.tenant_id, left)], reason, [fates])[0]
        self._complete(queue, entries, homeless, fates)

    def _refuse_tenantless(self, group: BatchGroup) -> BatchGroup:
        kept: BatchGroup = []
        for queue, entries in group:
            if queue.tenant_id is not None:
                kept.append((queue, entries))
                continue
            fates: Counter[str] = Counter()
            if not queue.attempt:  # or it is counted, and nothing could be written then
                fates["refused"] = len(entries)
                self._reporter.report("refused", events=len(entries), reason="no tenant_id")
            reason = "refused: require_tenant_id is on"
            (left,) = self._dead_letter([(None, entries)], reason, [fates], tenant_required=True)
            self._complete(queue, entries, left, fates)
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
            left = [[e for e in entries if not self._wal.defer(e)] for _, entries in batches]
            for (_, entries), rest, fate in zip(batches, left, fates, strict=True):
                fate["deferred"] += len(entries) - len(rest)
            homeless = sum(map(len, left))
            self._reporter.report(
                "dlq_failed",
                **_whose(batches),
                deferred=sum(len(entries) for _, entries in batches) - homeless,
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

        What cannot be written to the DLQ goes back to its queue and is tried again. Returns whether
        anything was written there, and notes it in :attr:`spilled`.
        """
        wrote = False
        waiting = {id(entries): (queue, entries) for queue, entries in self._buffers.overfull()}
        try:
            for together in packed([*waiting.values()]):
                if not drop:
                    self._spill(together)
                    wrote = True
                fate = "dropped" if drop else "spilled"
                for queue, entries in together:
                    del waiting[id(entries)]
                    self._buffers.complete(queue, entries, {fate: len(entries)}, free=False)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._reporter.report("spill_failed", reason=reason)
        finally:
            for queue, entries in waiting.values():
                self._buffers.put_back(queue, entries)
        return wrote

    def _spill(self, together: BatchGroup) -> None:
        batches = [(queue.tenant_id, [e.payload for e in entries]) for queue, entries in together]
        name = self._dlq.put_together(batches, "spilled: queue full")
        self.spilled = True  # before it is completed: flush looks at both
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

    def leave_behind(self, together: BatchGroup) -> None:
        """Leave entries that were drained to the WAL, or else to the DLQ: there is no more time."""
        homeless = [
            (queue, entries, [entry for entry in entries if not self._wal.keeps(entry)])
            for queue, entries in together
        ]
        fates = [Counter(deferred=len(entries) - len(left)) for _, entries, left in homeless]
        batches = [(queue.tenant_id, left) for queue, _, left in homeless if left]
        theirs = [fate for fate, (*_, left) in zip(fates, homeless, strict=True) if left]
        if batches:
            lost = self._dead_letter(batches, "shutdown before it was inserted", theirs)
            for fate, left in zip(theirs, lost, strict=True):
                fate["lost"] += len(left)
        for (queue, entries, _), fate in zip(homeless, fates, strict=True):
            self._buffers.complete(queue, entries, fate, free=False)


def _whose(batches: Sequence[tuple[str | None, Sequence[object]]]) -> dict[str, Any]:
    """Return what a report says of whose events they are."""
    if len(batches) == 1:
        return {"tenant_id": batches[0][0]}
    return {"tenants": len(batches)}
