"""Which tenants' events share a dead letter: many tenants with little each fill no folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from logbun_logging._engine.tenant_queue import BatchGroup, TenantQueue
from logbun_logging.event import Entry

__all__ = ["DeadBatches", "packed"]

#: A tenant with so many bytes has a file of its own.
_OWN_FILE: Final = 256 * 1024

#: About the most bytes that several tenants have in one file.
_SHARED_FILE: Final = 1024 * 1024


def packed(parts: Iterable[tuple[TenantQueue, list[Entry]]]) -> Iterator[BatchGroup]:
    """Yield what goes into one file, file by file, as soon as it is full."""
    together: BatchGroup = []
    total = 0
    for queue, entries in parts:
        size = _size(entries)
        if size >= _OWN_FILE:
            yield [(queue, entries)]
            continue
        together.append((queue, entries))
        total += size
        if total >= _SHARED_FILE:
            yield together
            together, total = [], 0
    if together:
        yield together


def _size(entries: Iterable[Entry]) -> int:
    return sum(len(entry.payload) for entry in entries)


class DeadBatches:
    """The batches that go to the DLQ next, and wait for others to share a file with them.

    Used under the buffers' lock. The batches themselves are in their queues.
    """

    def __init__(self) -> None:
        self._queues: list[TenantQueue] = []
        self._bytes = 0
        self._since = 0.0  # when the first one came

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, queue: TenantQueue, now: float) -> None:
        """Take up the batch that *queue* keeps."""
        if not self._queues:
            self._since = now
        self._queues.append(queue)
        self._bytes += _size(queue.retrying)

    def due_in(self, now: float, patience: float) -> float | None:
        """Return in how many seconds they are to be written; None if there are none.

        Args:
            now: the time.
            patience: how many seconds the first one waits, unless a file is full before.
        """
        if not self._queues:
            return None
        return 0.0 if self._bytes >= _SHARED_FILE else max(0.0, self._since + patience - now)

    def take(self) -> list[TenantQueue]:
        """Return all of them, in the order in which they came."""
        queues, self._queues, self._bytes = self._queues, [], 0
        return queues
