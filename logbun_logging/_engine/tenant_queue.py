"""One tenant's events in memory: those that wait, and the batch that is on its way."""

from __future__ import annotations

from collections import deque
from typing import Final

from logbun_logging.event import Entry

__all__ = ["BatchGroup", "TenantQueue"]

#: Seconds after which a tenant counts as stalled: it had no turn, or its insert has not ended.
#: A full buffer before that is a burst, not an outage.
_STALLED_AFTER: Final = 2.0


class TenantQueue:
    """One tenant's events in memory. Everything is written under the lock of the buffers."""

    __slots__ = (
        "admitted",
        "aging",
        "attempt",
        "batch_at",
        "buffered",
        "busy",
        "completed",
        "entries",
        "failed_at",
        "first_at",
        "in_flight",
        "ready",
        "retrying",
        "since",
        "tenant_id",
        "unsent",
    )

    def __init__(self, tenant_id: str | None) -> None:
        self.tenant_id = tenant_id
        self.entries: deque[Entry] = deque()
        self.admitted = 0
        self.completed = 0
        self.buffered = 0  # entries that have come into the buffer, ever
        self.busy = False  # a worker has a batch of it, or it waits to try that batch again
        self.ready = False  # stands in the queue for a worker
        self.aging = False  # stands in the queue for the flush interval
        self.since = 0.0  # since when it is busy or ready
        self.first_at = 0.0  # when the oldest buffered entry came
        self.in_flight: list[Entry] = []  # the batch that a worker has
        self.retrying: list[Entry] = []  # the batch that failed
        self.batch_at = 0  # how many entries had come before the oldest of either
        self.attempt = 0  # how often that has been tried
        self.failed_at = 0.0  # when that failed first
        self.unsent = ""  # why that goes to the DLQ, if it does

    @property
    def queued(self) -> int:
        """Events of this tenant in memory."""
        return self.admitted - self.completed

    @property
    def oldest(self) -> int:
        """How many entries had come before the oldest one that is in memory."""
        if self.in_flight or self.retrying:
            return self.batch_at
        return self.buffered - len(self.entries)

    def pop(self, count: int) -> list[Entry]:
        """Take the oldest *count* entries out of the buffer."""
        if count < len(self.entries):
            return [self.entries.popleft() for _ in range(count)]
        entries = list(self.entries)
        self.entries.clear()
        return entries

    def stalled(self, now: float) -> bool:
        """Tell whether the database does not keep up with this tenant."""
        return self.attempt > 0 or ((self.busy or self.ready) and now - self.since > _STALLED_AFTER)


#: What a worker takes: queues, each with the entries of its batches, in order.
BatchGroup = list[tuple[TenantQueue, list[Entry]]]
