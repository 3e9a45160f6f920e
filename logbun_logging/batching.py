"""Per-tenant buffers: admission, triggers, and fair, ordered hand-over to the flush workers.

Everything that may wait in memory is counted here, from the moment the caller is let in until the
event is in the database, the DLQ, or given up: the queue between handler and listener and batches
in flight included. The invariant: for each tenant ``admitted - settled`` events are in memory, and
they leave in the order in which they came.

Who calls what: ``admit`` the application's threads; ``put`` the listener; ``take``, ``settle`` and
``retry_later`` the flush workers; ``overfull`` the spiller.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from logbun_logging.event import Entry
from logbun_logging.options import BatchingOptions, LimitOptions

__all__ = ["Admission", "Buffers", "Lane", "Shipment"]

#: What becomes of a call: admitted, refused because it is to be dropped, or no room in memory.
Admission = Literal["admitted", "drop", "full"]

#: What an entry costs in memory beside its payload: objects, pointers, the record in the queue.
_OVERHEAD: Final = 400

#: A tenant whose turn has not come, or whose insert has not ended, for so many seconds, is held up.
#: Until then a full buffer is a burst, and a burst is not an outage.
_HELD_UP_AFTER: Final = 2.0

#: How long the first due batch waits for company, in seconds: larger transactions cost less for
#: each event, and a burst of calls need not share the GIL with its own delivery.
_LINGER: Final = 0.02

#: More lanes than this are not kept for tenants that have nothing waiting.
_IDLE_LANES: Final = 4096


class Lane:
    """One tenant's events in memory."""

    __slots__ = (
        "admitted",
        "aging",
        "attempt",
        "busy",
        "entries",
        "first_at",
        "in_flight",
        "ready",
        "retrying",
        "settled",
        "since",
        "tenant_id",
    )

    def __init__(self, tenant_id: str | None) -> None:
        self.tenant_id = tenant_id
        self.entries: deque[Entry] = deque()
        self.admitted = 0
        self.settled = 0
        self.busy = False  # a worker has a batch of it, or it waits to try that batch again
        self.ready = False  # stands in the queue for a worker
        self.aging = False  # stands in the queue for the flush interval
        self.since = 0.0  # since when it is busy or ready
        self.first_at = 0.0  # when the oldest buffered entry came
        self.in_flight: list[Entry] = []  # the batch that a worker has
        self.retrying: list[Entry] = []  # the batch that failed
        self.attempt = 0  # how often that has been tried

    @property
    def queued(self) -> int:
        """Events of this tenant in memory."""
        return self.admitted - self.settled

    def pop(self, count: int) -> list[Entry]:
        """Take the oldest *count* entries out of the buffer."""
        if count < len(self.entries):
            return [self.entries.popleft() for _ in range(count)]
        entries = list(self.entries)
        self.entries.clear()
        return entries

    def held_up(self, now: float) -> bool:
        """Tell whether the database does not keep up with this tenant."""
        return self.attempt > 0 or ((self.busy or self.ready) and now - self.since > _HELD_UP_AFTER)


#: What a worker takes: lanes, each with the entries of its batches, in order.
Shipment = list[tuple[Lane, list[Entry]]]


class Buffers:
    """All tenants' buffers.

    Args:
        batching: triggers and bounds of one tenant.
        limits: bounds of all tenants together.
        many: a worker may take the lanes of several tenants at once.
        crowding: near the total bounds, the tenants with the most are spilled; a durable trail
            parks events in its WAL instead.
        shipment_size: most events that a worker takes.
        hurry: called when a caller is about to wait: what is queued should come here now.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        batching: BatchingOptions,
        limits: LimitOptions,
        *,
        many: bool,
        crowding: bool = True,
        shipment_size: int = 5000,
        hurry: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batching = batching
        self._trigger = min(batching.max_size, batching.max_queue_size)
        self._cap = batching.max_queue_size
        self._max_events = limits.max_total_queued
        self._max_bytes = limits.max_queued_bytes
        self._drop = batching.on_queue_full == "drop"
        self._block = batching.on_queue_full == "block"
        self._many = many
        self._crowding = crowding
        self._shipment_size = shipment_size if many else batching.max_size
        self._hurry = hurry
        self._clock = clock
        self._lock = threading.RLock()  # re-entrant: a signal handler may log
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._lanes: dict[str | None, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._aging: deque[tuple[float, Lane]] = deque()
        self._retries: list[tuple[float, int, Lane]] = []
        self._tie = 0
        self._flushing = 0
        self._waiting = 0
        self._closed = False
        self._settled = 0
        self.events = 0
        self.bytes = 0

    @property
    def admitted(self) -> int:
        """Events that were let in, ever."""
        with self._lock:
            return self._settled + self.events

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

    def would_wait(self, entry: Entry) -> bool:
        """Tell whether :meth:`admit` would wait until its tenant's events are delivered."""
        with self._lock:
            lane = self._lanes.get(entry.tenant_id)
            return self._block and lane is not None and lane.queued >= self._cap

    def _admit_when_full(self, lane: Lane, size: int) -> Admission:
        if self._drop and lane.queued >= self._cap and lane.held_up(self._clock()):
            return "drop"
        if self._block and lane.queued >= self._cap:
            # A tenant that is still full after the wait is let in, and spilled.
            self._wait(lambda: lane.queued < self._cap, self._batching.block_timeout)
        if not self._has_room(size):
            return "drop" if self._drop else "full"
        return "admitted"

    def _has_room(self, size: int) -> bool:
        """Tell whether the total bounds let *size* bytes in; one event may be of any size."""
        few = self.events < self._max_events
        return few and (self.bytes + size <= self._max_bytes or not self.events)

    def wait_for_room(self, entry: Entry, timeout: float) -> bool:
        """Wait for room in the total bounds; for events that cannot be kept elsewhere."""
        size = len(entry.payload) + _OVERHEAD
        with self._lock:
            return self._wait(lambda: self._has_room(size), timeout)

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
                buffer = lane.entries
                if not buffer:
                    lane.first_at = now
                    self._age(lane)
                buffer.append(entry)
                if len(buffer) >= self._trigger and not lane.ready and not lane.busy:
                    self._queue(lane, now)
            if self._flushing or (not self._ready and self._above(0.5)):
                self._queue_all(now)  # many tenants with little each: none of it is due by itself

    def discard(self, entries: Sequence[Entry]) -> None:
        """Forget admitted entries that are not to be delivered."""
        with self._lock:
            for entry in entries:
                entry.buffered = True
                self.settle(self._lanes[entry.tenant_id], [entry], free=False)
            self._settled -= len(entries)

    def _age(self, lane: Lane) -> None:
        if not lane.aging:
            lane.aging = True
            self._aging.append((lane.first_at + self._batching.flush_interval, lane))
            if len(self._aging) == 1:
                self._work.notify()  # a worker that sleeps without a limit must look again

    def _queue(self, lane: Lane, now: float) -> None:
        lane.ready = True
        lane.since = now
        self._ready.append(lane)
        self._work.notify()

    def _queue_all(self, now: float) -> None:
        for lane in self._lanes.values():
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
        times = [waiting[0][0] for waiting in (self._aging, self._retries) if waiting]
        return min(times) - now if times else None

    # ── the flush workers ──

    def take(self, timeout: float | None) -> Shipment | None:
        """Return due lanes with their events, [] after *timeout* seconds, None when closed.

        The lanes are the caller's until it settles them, so no tenant's order can be broken. Under
        load every lane gets an equal share, so no tenant starves another.
        """
        with self._lock:
            deadline = None if timeout is None else self._clock() + timeout
            while True:
                pause = self._queue_due()
                linger = self._linger()
                if self._ready and linger <= 0:
                    break
                if self._ready:
                    self._work.wait(linger)
                    continue
                if self._closed:
                    return None
                if deadline is not None:
                    left = deadline - self._clock()
                    if left <= 0:
                        return []
                    pause = left if pause is None else min(pause, left)
                self._work.wait(pause)
            now = self._clock()
            lanes = min(len(self._ready), self._shipment_size) if self._many else 1
            share = max(self._batching.max_size, self._shipment_size // lanes)
            shipment: Shipment = []
            left = self._shipment_size
            while self._ready and len(shipment) < lanes and left > 0:
                lane = self._ready.popleft()
                lane.ready, lane.busy, lane.since = False, True, now
                entries, lane.retrying = lane.retrying, []
                if not entries:
                    count = min(len(lane.entries), share, left)
                    entries = lane.pop(count)
                    lane.first_at = now
                lane.in_flight = entries
                shipment.append((lane, entries))
                left -= len(entries)
            return shipment

    def _linger(self) -> float:
        """Return the seconds that the due lanes should still wait for company."""
        if not self._ready or self._flushing or self._waiting or self._closed or not self._many:
            return 0.0
        if self.events >= self._shipment_size:
            return 0.0
        return self._ready[0].since + _LINGER - self._clock()

    def settle(self, lane: Lane, entries: Sequence[Entry], *, free: bool = True) -> None:
        """Take *entries* off the books; with *free* the lane may be taken again.

        A batch that was in flight when everything was given up is off the books already.
        """
        if free and lane.in_flight is not entries:
            return
        size = sum(len(entry.payload) for entry in entries) + _OVERHEAD * len(entries)
        with self._lock:
            lane.settled += len(entries)
            self._settled += len(entries)
            self.events -= len(entries)
            self.bytes -= size
            if free:
                self._free(lane)
            self._room.notify_all()

    def _free(self, lane: Lane) -> None:
        lane.busy = False
        lane.in_flight = []
        lane.attempt = 0
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

    def retry_later(
        self, lane: Lane, entries: list[Entry], delay: float, only: list[Entry] | None = None
    ) -> None:
        """Keep the lane's batch for another try after *delay* seconds; others go on meanwhile.

        With *only* some of it are kept, and the others are settled. A batch that was in flight when
        everything was given up is off the books already.
        """
        with self._lock:
            if lane.in_flight is not entries:
                return
            if only is not None:
                kept = set(only)
                self.settle(lane, [entry for entry in entries if entry not in kept], free=False)
            lane.retrying, lane.in_flight = entries if only is None else only, []
            lane.attempt += 1
            self._tie += 1
            heapq.heappush(self._retries, (self._clock() + delay, self._tie, lane))
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
                for lane in self._lanes.values()
                if lane.queued > self._cap and lane.entries and lane.held_up(now)
            ]
            if self._crowding and self.crowded():
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
        return self._above(0.9)

    def spacious(self) -> bool:
        """Tell whether there is room for what a WAL has: live events need the last fifth."""
        return not self._above(0.8)

    def _above(self, part: float) -> bool:
        return self.events > part * self._max_events or self.bytes > part * self._max_bytes

    # ── operations ──

    def flush(self, deadline: float) -> bool:
        """Make due what is admitted now, and wait for it; return whether it is settled."""
        with self._lock:
            targets = [(lane, lane.admitted) for lane in self._lanes.values() if lane.queued]

            def settled() -> bool:
                while targets and targets[-1][0].settled >= targets[-1][1]:
                    targets.pop()
                return not targets

            self._flushing += 1
            self._queue_all(self._clock())
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
            return {lane.tenant_id: lane.queued for lane in self._lanes.values() if lane.queued}
