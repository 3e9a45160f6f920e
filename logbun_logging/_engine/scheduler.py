"""Per-tenant buffers: admission, triggers, and fair, ordered hand-over to the flush workers.

Everything that may wait in memory is counted here, from the moment the caller is let in until the
event is in the database, the DLQ, or given up: the queue between handler and listener and batches
in flight included. The invariants: for each tenant ``admitted - settled`` events are in memory, and
they leave in the order in which they came; an event leaves in the same step in which its fate is
counted, so :meth:`Buffers.books` is right at every moment.

Who calls what: ``admit`` the application's threads; ``readmit`` recovery; ``put`` the listener;
``take``, ``settle``, ``settle_part``, ``retry_later`` and ``dead_letter_later`` the flush workers;
``overfull`` the spiller. Whoever has taken entries owns them until one of these gives them back.
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
from logbun_logging._engine.tenant_queue import Lane, Shipment
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

#: More lanes than this are not kept for tenants that have nothing waiting.
_IDLE_LANES: Final = 4096

#: How long dead batches wait for others while somebody waits for them, in seconds.
_SHORT_LINGER: Final = 0.1


class Buffers:
    """All tenants' buffers.

    Args:
        batching: triggers and bounds of one tenant.
        limits: bounds of all tenants together.
        many: a worker may take the lanes of several tenants at once.
        durable: the WAL has every event, so a tenant over its bound need not use up memory.
        counters: what became of events.
        places: who may call its database; of no use with *many*.
        batch_size: returns the rows that the one database of *many* takes at once.
        carried: events that were accepted before these buffers were made, and have left.
        hurry: called when a caller is about to wait: what is queued should come here now.
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
        hurry: Callable[[], None] = lambda: None,
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
        self._hurry = hurry
        self._clock = clock
        self._lock = threading.RLock()  # re-entrant: a signal handler may log
        # The lock guards everything below.
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._lanes: dict[str | None, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._doubtful: deque[Lane] = deque()  # ready, but it is not known that the database works
        self._aging: deque[tuple[float, Lane]] = deque()
        self._retries: list[tuple[float, int, Lane]] = []
        self._dead = DeadBatches()
        self._tie = 0
        self._flushing = 0
        self._waiting = 0
        self._closed = False
        self._settled = carried
        self._recovered = 0
        self.events = 0
        self.bytes = 0

    def books(self) -> dict[str, Any]:
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
            return self._settled + self.events - self._recovered

    # ── the application's threads ──

    def admit(self, entry: Entry) -> Admission:
        """Make room for *entry*; atomic, and never waits for more than ``block_timeout``."""
        size = len(entry.payload) + _OVERHEAD
        with self._lock:
            found = self._lanes.get(entry.tenant_id)
            lane = Lane(entry.tenant_id) if found is None else found
            if (
                lane.admitted - lane.settled >= self._cap
                or self.events >= self._max_events
                or (self.bytes + size > self._max_bytes and self.events)
            ):
                verdict = self._admit_when_full(lane, size)
                if verdict != "admitted":
                    return verdict
                found = None  # it may have been let go while we waited
            if found is None:
                lane = self._lanes.setdefault(entry.tenant_id, lane)
            lane.admitted += 1
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
            lane = self._lanes.get(entry.tenant_id)
            block = self._policy.on_queue_full == "block"
            return block and lane is not None and lane.queued >= self._cap

    def _admit_when_full(self, lane: Lane, size: int) -> Admission:
        decision = self._decide(lane, size)
        if decision == "wait":
            # A tenant that is still full after the wait is let in, and spilled.
            self._wait(lambda: lane.queued < self._cap, self._batching.block_timeout)
            decision = self._decide(lane, size, waited=True)
        return "admitted" if decision == "wait" else decision

    def _decide(self, lane: Lane, size: int, *, waited: bool = False) -> Decision:
        return decide(
            self._policy,
            over=lane.queued >= self._cap,
            held_up=lane.held_up(self._clock()),
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
            lane = self._lanes.setdefault(entry.tenant_id, Lane(entry.tenant_id))
            lane.admitted += 1
            self.events += 1
            self.bytes += size
            entry.admitted = True
        return "admitted"

    def _wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        self._waiting += 1
        self._hurry()
        self._work.notify()
        try:
            return self._room.wait_for(condition, timeout)
        finally:
            self._waiting -= 1

    # ── the listener ──

    def put(self, entries: Sequence[Entry]) -> None:
        """Buffer admitted entries, and queue the lanes that are due.

        An entry that comes once more, because a signal handler broke its call off, is left out.
        """
        with self._lock:
            now = self._clock()
            for entry in entries:
                if entry.buffered:
                    continue
                entry.buffered = True
                lane = self._lanes[entry.tenant_id]
                lane.buffered += 1
                buffer = lane.entries
                if not buffer:
                    lane.first_at = now
                    self._age(lane)
                buffer.append(entry)
                if len(buffer) >= self._trigger and not lane.ready and not lane.busy:
                    self._queue(lane, now)
            if self._flushing or (not (self._ready or self._doubtful) and self._above(0.5)):
                self._queue_all(now)  # many tenants with little each: none of it is due by itself

    def discard(self, entries: Sequence[Entry], fate: str) -> None:
        """Settle admitted entries that have not come into the buffer, and never will."""
        with self._lock:
            for entry in entries:
                entry.buffered = True
                lane = self._lanes[entry.tenant_id]
                lane.buffered += 1
                self.settle(lane, [entry], {fate: 1}, free=False)

    def _age(self, lane: Lane) -> None:
        if not lane.aging:
            lane.aging = True
            self._aging.append((lane.first_at + self._batching.flush_interval, lane))
            if len(self._aging) == 1:
                self._work.notify()  # a worker that sleeps without a limit must look again

    def _queue(self, lane: Lane, now: float) -> None:
        lane.ready = True
        lane.since = now
        doubtful = not self._many and self._places.doubtful(lane.tenant_id)
        (self._doubtful if doubtful else self._ready).append(lane)
        self._work.notify()

    def _queue_all(self, now: float) -> None:
        for lane in list(self._lanes.values()):  # a signal handler may add one
            if lane.entries and not lane.ready and not lane.busy:
                self._queue(lane, now)

    def _queue_due(self) -> float | None:
        """Queue what has become due; return the seconds until the next thing will, or None."""
        now = self._clock()
        while self._aging and self._aging[0][0] <= now:
            lane = self._aging.popleft()[1]
            lane.aging = False
            if not lane.entries or lane.ready or lane.busy:
                continue
            if lane.first_at + self._batching.flush_interval > now:
                self._age(lane)  # what was the oldest has gone meanwhile
            else:
                self._queue(lane, now)
        while self._retries and self._retries[0][0] <= now:
            lane = heapq.heappop(self._retries)[2]
            self._queue(lane, lane.since)
        times = [waiting[0][0] - now for waiting in (self._aging, self._retries) if waiting]
        dead = self._dead.due_in(now, self._patience())
        return min(times if dead is None else [*times, dead], default=None)

    # ── the flush workers ──

    def take(self, timeout: float | None) -> Shipment | None:
        """Return due lanes with their events, [] after *timeout* seconds, None when closed.

        The lanes are the caller's until it settles them, so no tenant's order can be broken. Under
        load every lane gets an equal share, so no tenant starves another.

        Lanes whose batches go to the DLQ come by themselves: :attr:`Lane.unsent` says why.
        """
        with self._lock:
            deadline = None if timeout is None else self._clock() + timeout
            while True:
                if shipment := self._ship_dead():
                    return shipment
                pause = self._queue_due()
                queue = self._takeable()
                linger = self._linger()
                if queue and linger <= 0:
                    shipment = self._ship(queue)
                    if shipment:
                        if self._retries or self._dead:
                            self._work.notify()  # another worker looks when they are due
                        return shipment
                    continue  # what was due has been spilled or given up meanwhile
                if queue:
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

    def _takeable(self) -> deque[Lane] | None:
        """Return the queue of due lanes of which one may be taken now."""
        if self._many:
            return self._ready or None
        now = self._clock()
        for queue in (self._ready, self._doubtful):
            if queue and self._places.free(now, doubtful=queue is self._doubtful):
                return queue
        return None

    def _ship(self, queue: deque[Lane]) -> Shipment:
        """Take lanes out of *queue*, each with an equal share of what one insert takes."""
        now = self._clock()
        shipment: Shipment = []
        largest = self._batching.max_size
        size = max(largest, self._batch_size()) if self._many else largest
        lanes = min(len(queue), size) if self._many else 1
        share = max(largest, size // lanes)
        left = size
        while queue and len(shipment) < lanes and left > 0:
            lane = queue.popleft()
            lane.ready = False
            entries = [*lane.retrying]  # a list of the taker's own, by which he is known
            lane.retrying = []
            if not entries:
                lane.batch_at = lane.buffered - len(lane.entries)
                entries = lane.pop(min(len(lane.entries), share, left))
                lane.first_at = now
            if not entries:
                continue
            lane.busy, lane.since, lane.in_flight = True, now, entries
            if not self._many:
                self._places.take(lane, now, doubtful=queue is self._doubtful)
            shipment.append((lane, entries))
            left -= len(entries)
        return shipment

    def _ship_dead(self) -> Shipment:
        """Take the batches that go to the DLQ, if they have waited long enough for each other."""
        if self._dead.due_in(self._clock(), self._patience()) != 0:
            return []
        shipment: Shipment = []
        for lane in self._dead.take():
            entries = [*lane.retrying]
            lane.retrying = []
            if entries:  # they have not been given up meanwhile
                lane.in_flight = entries
                shipment.append((lane, entries))
        return shipment

    def _patience(self) -> float:
        """Return the seconds that dead batches wait for each other."""
        if self._closed:
            return 0.0
        hurry = self._flushing or self._waiting or self.crowded()
        interval = self._batching.flush_interval
        return min(interval, _SHORT_LINGER) if hurry else interval

    def _linger(self) -> float:
        """Return the seconds that the due lanes should still wait for company."""
        if not self._ready or self._flushing or self._waiting or self._closed or not self._many:
            return 0.0
        if self.events >= self._batch_size():
            return 0.0
        return self._ready[0].since + _LINGER - self._clock()

    def settle(
        self, lane: Lane, entries: Sequence[Entry], fates: Mapping[str, int], *, free: bool = True
    ) -> None:
        """Take *entries* off the books and count their *fates*; with *free* the lane is done.

        A batch that was in flight when everything was given up is off the books already.
        """
        size = sum(len(entry.payload) for entry in entries) + _OVERHEAD * len(entries)
        with self._lock:
            if free and lane.in_flight is not entries:
                return
            lane.settled += len(entries)
            self._settled += len(entries)
            self.events -= len(entries)
            self.bytes -= size
            self._counters.add_all(fates)
            if free:
                self._free(lane)
            self._room.notify_all()

    def settle_part(
        self, lane: Lane, entries: list[Entry], kept: Sequence[Entry], fates: Mapping[str, int]
    ) -> bool:
        """Settle those *entries* in flight that are not *kept*, and take them out of the list.

        Returns False if everything was given up meanwhile.
        """
        with self._lock:
            if lane.in_flight is not entries:
                return False
            left = set(kept)
            self.settle(lane, [entry for entry in entries if entry not in left], fates, free=False)
            entries[:] = kept
            return True

    def _free(self, lane: Lane) -> None:
        lane.busy = False
        lane.in_flight = []
        lane.attempt = 0
        lane.unsent = ""
        self._leave_place(lane)
        if lane.entries:
            now = self._clock()
            if (
                len(lane.entries) >= self._trigger
                or self._flushing
                or now >= lane.first_at + self._batching.flush_interval
            ):
                self._queue(lane, now)
            else:
                self._age(lane)
        elif lane.admitted == lane.settled and len(self._lanes) > _IDLE_LANES:
            del self._lanes[lane.tenant_id]

    def _leave_place(self, lane: Lane) -> None:
        self._places.release(lane)
        if self._ready or self._doubtful:
            self._work.notify()

    def retry_later(self, lane: Lane, entries: list[Entry], delay: float) -> None:
        """Keep the lane's batch for another try after *delay* seconds; others go on meanwhile.

        Does nothing for a batch that is not in flight, and so has been seen to.
        """
        with self._lock:
            if lane.in_flight is not entries:
                return
            if not lane.attempt:
                lane.failed_at = self._clock()
            lane.retrying, lane.in_flight = entries, []
            lane.attempt += 1
            lane.unsent = ""
            self._tie += 1
            heapq.heappush(self._retries, (self._clock() + delay, self._tie, lane))
            self._leave_place(lane)
            self._work.notify()

    def dead_letter_later(self, lane: Lane, entries: list[Entry], reason: str) -> None:
        """Keep the lane's batch until it goes to the DLQ, with others that come soon.

        They are taken together after ``flush_interval``, or as soon as they fill a file. Does
        nothing for a batch that is not in flight.
        """
        with self._lock:
            if lane.in_flight is not entries:
                return
            lane.retrying, lane.in_flight = entries, []
            lane.unsent = reason
            self._dead.add(lane, self._clock())
            self._leave_place(lane)
            self._work.notify()

    # ── the spiller ──

    def overfull(self) -> Shipment:
        """Take what has to leave memory unsent, because the database does not keep up.

        That is the waiting events of every tenant over its bound, and, when all of them together
        are near theirs, of the tenants with the most.
        """
        with self._lock:
            now = self._clock()
            found = [
                (lane, lane.pop(len(lane.entries)))
                for lane in list(self._lanes.values())
                if lane.queued > self._cap and lane.entries and lane.held_up(now)
            ]
            if not self._policy.durable and self.crowded():
                lanes = sorted(self._lanes.values(), key=lambda lane: -len(lane.entries))
                target = self.events // 4
                for lane in lanes:
                    if target <= 0 or not lane.entries:
                        break
                    entries = lane.pop(len(lane.entries))
                    target -= len(entries)
                    found.append((lane, entries))
            return [(lane, entries) for lane, entries in found if entries]

    def put_back(self, lane: Lane, entries: Sequence[Entry]) -> None:
        """Return what could not be spilled to the head of its lane."""
        with self._lock:
            if not lane.entries:
                lane.first_at = self._clock()
                self._age(lane)
            lane.entries.extendleft(reversed(entries))

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
        """Make due what is admitted now, and wait for it; return whether it is settled."""
        with self._lock:
            lanes = list(self._lanes.values())  # a signal handler may add one
            targets = [(lane, lane.admitted) for lane in lanes if lane.queued]

            # Not how many have left since: the spiller takes newer ones before older ones.
            def settled() -> bool:
                while targets and targets[-1][0].oldest >= targets[-1][1]:
                    targets.pop()
                return not targets

            self._flushing += 1
            self._queue_all(self._clock())
            self._work.notify_all()  # dead batches wait no longer for each other
            try:
                return self._room.wait_for(settled, max(0.0, deadline - self._clock()))
            finally:
                self._flushing -= 1

    def make_all_due(self) -> None:
        """Queue every lane that has anything."""
        with self._lock:
            self._queue_all(self._clock())

    def drain(self) -> Iterator[tuple[Lane, list[Entry]]]:
        """Take everything, lane by lane, at the end, when there is no more time.

        What a worker waits for is among it: stored twice it is one row, not at all it would be
        lost.
        """
        with self._lock:
            lanes = list(self._lanes.values())
        for lane in lanes:
            with self._lock:
                entries = [*lane.in_flight, *lane.retrying, *lane.entries]
                lane.in_flight, lane.retrying = [], []
                lane.entries.clear()
            if entries:
                yield lane, entries

    def close(self) -> None:
        """Wake the workers for the last time."""
        with self._lock:
            self._closed = True
            self._work.notify_all()

    def depths(self) -> dict[str | None, int]:
        """Return the events in memory by tenant."""
        with self._lock:
            lanes = list(self._lanes.values())  # a signal handler may add one
            return {lane.tenant_id: lane.queued for lane in lanes if lane.queued}
