"""Per-tenant buffers: admission, triggers, and fair, ordered hand-over to the flush workers.

Everything that may wait in memory is counted here, from the moment the caller is let in until the
event is in the database, the DLQ, or given up: the queue between handler and listener and batches
in flight included. The invariants: for each tenant ``admitted - completed`` events are in memory,
and they leave in the order in which they came; an event leaves in the same step in which its fate
is counted, so :meth:`Buffers.snapshot` is right at every moment.

Who calls what: ``admit`` the application's threads; ``readmit`` recovery; ``put`` the listener;
``take``, ``complete``, ``complete_part``, ``retry_later`` and ``dead_letter_later`` the flush
workers; ``overfull`` the spiller. A caller that has taken entries owns them until one of these
calls gives them back.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from logbun_logging._engine.backpressure import (
    CROWDED,
    RESERVED,
    SPACIOUS,
    Decision,
    Policy,
    decide,
)
from logbun_logging._engine.packing import DeadBatches
from logbun_logging._engine.tenant_queue import BatchGroup, TenantQueue
from logbun_logging._process.counters import Counters
from logbun_logging._tenancy.places import Places
from logbun_logging.event import Entry
from logbun_logging.options import BatchingOptions, LimitOptions

__all__ = ["Admission", "Buffers"]

#: What becomes of a call: admitted, refused because it is to be dropped, or no room in memory.
Admission = Literal["admitted", "drop", "full"]

#: What an entry costs in memory beside its payload: objects, pointers, the record in the queue.
_OVERHEAD: Final = 400

#: How long the first due batch waits for company, in seconds: larger transactions cost less for
#: each event, and a burst of calls need not share the GIL with its own delivery.
_LINGER: Final = 0.02

#: How often it is looked whether a tenant whose turn has come finds a place, in seconds.
_LOOK: Final = 0.25

#: More queues than this are not kept for tenants that have nothing waiting.
_IDLE_QUEUES: Final = 4096

#: How long dead batches wait for others while somebody waits for them, in seconds.
_SHORT_LINGER: Final = 0.1


class Buffers:
    """All tenants' buffers.

    Args:
        batching: triggers and bounds of one tenant.
        limits: bounds of all tenants together.
        many: a worker may take the queues of several tenants at once.
        durable: the WAL has every event, so a tenant over its bound need not use up memory.
        counters: what became of events.
        places: who may call its database; of no use with *many*.
        batch_size: returns the rows that the one database of *many* takes at once.
        carried: events that were accepted before these buffers were made, and have left.
        wake: called when a caller is about to wait: what is queued should come here now.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        batching: BatchingOptions,
        limits: LimitOptions,
        *,
        many: bool,
        durable: bool = False,
        counters: Counters | None = None,
        places: Places | None = None,
        batch_size: Callable[[], int] = lambda: 5000,
        carried: int = 0,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batching = batching
        self._trigger = min(batching.max_size, batching.max_queue_size)
        self._cap = batching.max_queue_size
        self._max_events = limits.max_total_queued
        self._max_bytes = limits.max_queued_bytes
        self._policy = Policy(durable, batching.on_queue_full)
        self._many = many
        self._counters = Counters() if counters is None else counters
        self._places = Places() if places is None else places
        self._batch_size = batch_size
        self._wake = wake
        self._clock = clock
        self._lock = threading.RLock()  # re-entrant: a signal handler may log
        # The lock guards everything below.
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._queues: dict[str | None, TenantQueue] = {}
        self._ready: deque[TenantQueue] = deque()
        self._doubtful: deque[TenantQueue] = (
            deque()
        )  # ready, but it is not known that the database works
        self._aging: deque[tuple[float, TenantQueue]] = deque()
        self._retries: list[tuple[float, int, TenantQueue]] = []
        self._dead = DeadBatches()
        self._tie = 0
        self._flushing = 0
        self._waiting = 0
        self._closed = False
        self._completed = carried
        self._recovered = 0
        self.events = 0
        self.bytes = 0

    def snapshot(self) -> dict[str, Any]:
        """Return all counters and what is in memory, of one moment."""
        with self._lock:
            return {
                **self._counters.snapshot(accepted=self.accepted),
                "queued": self.events,
                "queued_bytes": self.bytes,
                "queued_by_tenant": self.depths(),
            }

    @property
    def accepted(self) -> int:
        """Events that were let in at the call, ever: recovered ones are not among them."""
        with self._lock:
            return self._completed + self.events - self._recovered

    # ── the application's threads ──

    def admit(self, entry: Entry) -> Admission:
        """Make room for *entry*; atomic, and never waits for more than ``block_timeout``."""
        size = len(entry.payload) + _OVERHEAD
        with self._lock:
            found = self._queues.get(entry.tenant_id)
            queue = TenantQueue(entry.tenant_id) if found is None else found
            if (
                queue.admitted - queue.completed >= self._cap
                or self.events >= self._max_events
                or (self.bytes + size > self._max_bytes and self.events)
            ):
                verdict = self._admit_when_full(queue, size)
                if verdict != "admitted":
                    return verdict
                found = None  # it may have been let go while we waited
            if found is None:
                queue = self._queues.setdefault(entry.tenant_id, queue)
            queue.admitted += 1
            self.events += 1
            self.bytes += size
            entry.admitted = True
        return "admitted"

    def readmit(self, entry: Entry) -> Admission:
        """Make room for an *entry* that was read back from a WAL, and count it as recovered."""
        with self._lock:
            verdict = self.admit(entry)
            if verdict == "admitted":
                self._recovered += 1
                self._counters.add("recovered")
        return verdict

    def would_wait(self, entry: Entry) -> bool:
        """Tell whether :meth:`admit` would wait until its tenant's events are delivered."""
        with self._lock:
            queue = self._queues.get(entry.tenant_id)
            block = self._policy.on_queue_full == "block"
            return block and queue is not None and queue.queued >= self._cap

    def _admit_when_full(self, queue: TenantQueue, size: int) -> Admission:
        decision = self._decide(queue, size)
        if decision == "wait":
            # A tenant that is still full after the wait is let in, and spilled.
            self._wait(lambda: queue.queued < self._cap, self._batching.block_timeout)
            decision = self._decide(queue, size, waited=True)
        return "admitted" if decision == "wait" else decision

    def _decide(self, queue: TenantQueue, size: int, *, waited: bool = False) -> Decision:
        return decide(
            self._policy,
            over=queue.queued >= self._cap,
            stalled=queue.stalled(self._clock()),
            used=self._used(size),
            waited=waited,
        )

    def _used(self, size: int) -> float:
        """Return the part of memory that is in use with one more entry of *size*.

        An entry that is alone has room, whatever its size: it would find none later either.
        """
        if not self.events:
            return 0.0
        return max((self.events + 1) / self._max_events, (self.bytes + size) / self._max_bytes)

    def admit_later(self, entry: Entry, timeout: float) -> Admission:
        """Wait for room in the total bounds and take it; for what cannot be kept elsewhere."""
        size = len(entry.payload) + _OVERHEAD
        with self._lock:
            self._wait(lambda: self._used(size) <= RESERVED, timeout)
            if self._used(size) > 1:
                return "full"
            queue = self._queues.setdefault(entry.tenant_id, TenantQueue(entry.tenant_id))
            queue.admitted += 1
            self.events += 1
            self.bytes += size
            entry.admitted = True
        return "admitted"

    def _wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        self._waiting += 1
        self._wake()
        self._work.notify()
        try:
            return self._room.wait_for(condition, timeout)
        finally:
            self._waiting -= 1

    # ── the listener ──

    def put(self, entries: Sequence[Entry]) -> None:
        """Buffer admitted entries, and schedule the queues that are due.

        An entry that comes once more, because a signal handler broke its call off, is left out.
        """
        with self._lock:
            now = self._clock()
            for entry in entries:
                if entry.buffered:
                    continue
                entry.buffered = True
                queue = self._queues[entry.tenant_id]
                queue.buffered += 1
                buffer = queue.entries
                if not buffer:
                    queue.first_at = now
                    self._age(queue)
                buffer.append(entry)
                if len(buffer) >= self._trigger and not queue.ready and not queue.busy:
                    self._schedule(queue, now)
            if self._flushing or (not (self._ready or self._doubtful) and self._above(0.5)):
                self._schedule_all(
                    now
                )  # many tenants with little each: none of it is due by itself

    def discard(self, entries: Sequence[Entry], fate: str) -> None:
        """Complete admitted entries that have not come into the buffer, and never will."""
        with self._lock:
            for entry in entries:
                entry.buffered = True
                queue = self._queues[entry.tenant_id]
                queue.buffered += 1
                self.complete(queue, [entry], {fate: 1}, free=False)

    def _age(self, queue: TenantQueue) -> None:
        if not queue.aging:
            queue.aging = True
            self._aging.append((queue.first_at + self._batching.flush_interval, queue))
            if len(self._aging) == 1:
                self._work.notify()  # a worker that sleeps without a limit must look again

    def _schedule(self, queue: TenantQueue, now: float) -> None:
        queue.ready = True
        queue.since = now
        doubtful = not self._many and self._places.doubtful(queue.tenant_id)
        (self._doubtful if doubtful else self._ready).append(queue)
        self._work.notify()

    def _schedule_all(self, now: float) -> None:
        for queue in list(self._queues.values()):  # a signal handler may add one
            if queue.entries and not queue.ready and not queue.busy:
                self._schedule(queue, now)

    def _schedule_due(self) -> float | None:
        """Queue what has become due; return the seconds until the next thing will, or None."""
        now = self._clock()
        while self._aging and self._aging[0][0] <= now:
            queue = self._aging.popleft()[1]
            queue.aging = False
            if not queue.entries or queue.ready or queue.busy:
                continue
            if queue.first_at + self._batching.flush_interval > now:
                self._age(queue)  # what was the oldest has gone meanwhile
            else:
                self._schedule(queue, now)
        while self._retries and self._retries[0][0] <= now:
            queue = heapq.heappop(self._retries)[2]
            self._schedule(queue, queue.since)
        times = [waiting[0][0] - now for waiting in (self._aging, self._retries) if waiting]
        dead = self._dead.due_in(now, self._patience())
        return min(times if dead is None else [*times, dead], default=None)

    # ── the flush workers ──

    def take(self, timeout: float | None) -> BatchGroup | None:
        """Return due queues with their events, [] after *timeout* seconds, None when closed.

        The queues are the caller's until it completes them, so no tenant's order can be broken.
        Under load every queue gets an equal share, so no tenant starves another.

        Lanes whose batches go to the DLQ come by themselves: :attr:`TenantQueue.unsent` says why.
        """
        with self._lock:
            deadline = None if timeout is None else self._clock() + timeout
            while True:
                if group := self._take_dead():
                    return group
                pause = self._schedule_due()
                due = self._takeable()
                linger = self._linger()
                if due and linger <= 0:
                    group = self._take_from(due)
                    if group:
                        if self._retries or self._dead:
                            self._work.notify()  # another worker looks when they are due
                        return group
                    continue  # what was due has been spilled or given up meanwhile
                if due:
                    self._work.wait(linger)
                    continue
                if self._closed:
                    return None
                if self._ready or self._doubtful:
                    pause = _LOOK if pause is None else min(pause, _LOOK)
                if deadline is not None:
                    left = deadline - self._clock()
                    if left <= 0:
                        return []
                    pause = left if pause is None else min(pause, left)
                self._work.wait(pause)

    def _takeable(self) -> deque[TenantQueue] | None:
        """Return the line of due queues of which one may be taken now."""
        if self._many:
            return self._ready or None
        now = self._clock()
        for due in (self._ready, self._doubtful):
            if due and self._places.free(now, doubtful=due is self._doubtful):
                return due
        return None

    def _take_from(self, due: deque[TenantQueue]) -> BatchGroup:
        """Take queues out of *due*, each with an equal share of what one insert takes."""
        now = self._clock()
        group: BatchGroup = []
        largest = self._batching.max_size
        size = max(largest, self._batch_size()) if self._many else largest
        queues = min(len(due), size) if self._many else 1
        share = max(largest, size // queues)
        left = size
        while due and len(group) < queues and left > 0:
            queue = due.popleft()
            queue.ready = False
            entries = [*queue.retrying]  # a list of the taker's own, by which the batch is known
            queue.retrying = []
            if not entries:
                queue.batch_at = queue.buffered - len(queue.entries)
                entries = queue.pop(min(len(queue.entries), share, left))
                queue.first_at = now
            if not entries:
                continue
            queue.busy, queue.since, queue.in_flight = True, now, entries
            if not self._many:
                self._places.take(queue, now, doubtful=due is self._doubtful)
            group.append((queue, entries))
            left -= len(entries)
        return group

    def _take_dead(self) -> BatchGroup:
        """Take the batches that go to the DLQ, if they have waited long enough for each other."""
        if self._dead.due_in(self._clock(), self._patience()) != 0:
            return []
        group: BatchGroup = []
        for queue in self._dead.take():
            entries = [*queue.retrying]
            queue.retrying = []
            if entries:  # they have not been given up meanwhile
                queue.in_flight = entries
                group.append((queue, entries))
        return group

    def _patience(self) -> float:
        """Return the seconds that dead batches wait for each other."""
        if self._closed:
            return 0.0
        wake = self._flushing or self._waiting or self.crowded()
        interval = self._batching.flush_interval
        return min(interval, _SHORT_LINGER) if wake else interval

    def _linger(self) -> float:
        """Return the seconds that the due queues should still wait for company."""
        if not self._ready or self._flushing or self._waiting or self._closed or not self._many:
            return 0.0
        if self.events >= self._batch_size():
            return 0.0
        return self._ready[0].since + _LINGER - self._clock()

    def complete(
        self,
        queue: TenantQueue,
        entries: Sequence[Entry],
        fates: Mapping[str, int],
        *,
        free: bool = True,
    ) -> None:
        """Remove *entries* from memory's accounts and count their *fates*; *free*: the queue too.

        A batch that was in flight when everything was given up is accounted for already.
        """
        size = sum(len(entry.payload) for entry in entries) + _OVERHEAD * len(entries)
        with self._lock:
            if free and queue.in_flight is not entries:
                return
            queue.completed += len(entries)
            self._completed += len(entries)
            self.events -= len(entries)
            self.bytes -= size
            self._counters.add_all(fates)
            if free:
                self._free(queue)
            self._room.notify_all()

    def complete_part(
        self,
        queue: TenantQueue,
        entries: list[Entry],
        kept: Sequence[Entry],
        fates: Mapping[str, int],
    ) -> bool:
        """Complete those *entries* in flight that are not *kept*, and take them out of the list.

        Returns False if everything was given up meanwhile.
        """
        with self._lock:
            if queue.in_flight is not entries:
                return False
            left = set(kept)
            self.complete(
                queue, [entry for entry in entries if entry not in left], fates, free=False
            )
            entries[:] = kept
            return True

    def _free(self, queue: TenantQueue) -> None:
        queue.busy = False
        queue.in_flight = []
        queue.attempt = 0
        queue.unsent = ""
        self._leave_place(queue)
        if queue.entries:
            now = self._clock()
            if (
                len(queue.entries) >= self._trigger
                or self._flushing
                or now >= queue.first_at + self._batching.flush_interval
            ):
                self._schedule(queue, now)
            else:
                self._age(queue)
        elif queue.admitted == queue.completed and len(self._queues) > _IDLE_QUEUES:
            del self._queues[queue.tenant_id]

    def _leave_place(self, queue: TenantQueue) -> None:
        self._places.release(queue)
        if self._ready or self._doubtful:
            self._work.notify()

    def retry_later(self, queue: TenantQueue, entries: list[Entry], delay: float) -> None:
        """Keep the queue's batch for another try after *delay* seconds; others go on meanwhile.

        Does nothing for a batch that is not in flight, and so has been seen to.
        """
        with self._lock:
            if queue.in_flight is not entries:
                return
            if not queue.attempt:
                queue.failed_at = self._clock()
            queue.retrying, queue.in_flight = entries, []
            queue.attempt += 1
            queue.unsent = ""
            self._tie += 1
            heapq.heappush(self._retries, (self._clock() + delay, self._tie, queue))
            self._leave_place(queue)
            self._work.notify()

    def dead_letter_later(self, queue: TenantQueue, entries: list[Entry], reason: str) -> None:
        """Keep the queue's batch until it goes to the DLQ, with others that come soon.

        They are taken together after ``flush_interval``, or as soon as they fill a file. Does
        nothing for a batch that is not in flight.
        """
        with self._lock:
            if queue.in_flight is not entries:
                return
            queue.retrying, queue.in_flight = entries, []
            queue.unsent = reason
            self._dead.add(queue, self._clock())
            self._leave_place(queue)
            self._work.notify()

    # ── the spiller ──

    def overfull(self) -> BatchGroup:
        """Take what has to leave memory unsent, because the database does not keep up.

        That is the waiting events of every tenant over its bound, and, when all of them together
        are near theirs, of the tenants with the most.
        """
        with self._lock:
            now = self._clock()
            found = [
                (queue, queue.pop(len(queue.entries)))
                for queue in list(self._queues.values())
                if queue.queued > self._cap and queue.entries and queue.stalled(now)
            ]
            if not self._policy.durable and self.crowded():
                queues = sorted(self._queues.values(), key=lambda queue: -len(queue.entries))
                target = self.events // 4
                for queue in queues:
                    if target <= 0 or not queue.entries:
                        break
                    entries = queue.pop(len(queue.entries))
                    target -= len(entries)
                    found.append((queue, entries))
            return [(queue, entries) for queue, entries in found if entries]

    def put_back(self, queue: TenantQueue, entries: Sequence[Entry]) -> None:
        """Return what could not be spilled to the head of its queue."""
        with self._lock:
            if not queue.entries:
                queue.first_at = self._clock()
                self._age(queue)
            queue.entries.extendleft(reversed(entries))

    def crowded(self) -> bool:
        """Tell whether memory is nearly used up."""
        return self._above(CROWDED)

    def spacious(self) -> bool:
        """Tell whether there is room for what a WAL has: live events need the last fifth."""
        return not self._above(SPACIOUS)

    def _above(self, part: float) -> bool:
        return self.events > part * self._max_events or self.bytes > part * self._max_bytes

    # ── operations ──

    def flush(self, deadline: float) -> bool:
        """Make due what is admitted now, and wait for it; return whether it is completed."""
        with self._lock:
            queues = list(self._queues.values())  # a signal handler may add one
            targets = [(queue, queue.admitted) for queue in queues if queue.queued]

            # Not how many have left since: the spiller takes newer ones before older ones.
            def completed() -> bool:
                while targets and targets[-1][0].oldest >= targets[-1][1]:
                    targets.pop()
                return not targets

            self._flushing += 1
            self._schedule_all(self._clock())
            self._work.notify_all()  # dead batches wait no longer for each other
            try:
                return self._room.wait_for(completed, max(0.0, deadline - self._clock()))
            finally:
                self._flushing -= 1

    def make_all_due(self) -> None:
        """Schedule every queue that has anything."""
        with self._lock:
            self._schedule_all(self._clock())

    def drain(self) -> Iterator[tuple[TenantQueue, list[Entry]]]:
        """Take everything, queue by queue, at the end, when there is no more time.

        What a worker waits for is among it: stored twice it is one row, not at all it would be
        lost.
        """
        with self._lock:
            queues = list(self._queues.values())
        for queue in queues:
            with self._lock:
                entries = [*queue.in_flight, *queue.retrying, *queue.entries]
                queue.in_flight, queue.retrying = [], []
                queue.entries.clear()
            if entries:
                yield queue, entries

    def close(self) -> None:
        """Wake the workers for the last time."""
        with self._lock:
            self._closed = True
            self._work.notify_all()

    def depths(self) -> dict[str | None, int]:
        """Return the events in memory by tenant."""
        with self._lock:
            queues = list(self._queues.values())  # a signal handler may add one
            return {queue.tenant_id: queue.queued for queue in queues if queue.queued}
