"""Counters of the pipeline: what happened, seen from outside.

Everything that is not delivered is counted here under the name of its fate; nothing in this library
drops an event without touching one of these.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

__all__ = ["COUNTERS", "Counters"]

#: Every counter, with its meaning.
COUNTERS: Final = {
    "accepted": "events taken over from the caller",
    "inserted": "events that the adapter has confirmed",
    "retried": "batches of one tenant that were put back for another attempt",
    "spilled": "events written to the DLQ because a queue was full",
    "dead_lettered": "events written to the DLQ because inserting failed",
    "redelivered": "events inserted from the DLQ",
    "poisoned": "events in DLQ files that became .dead",
    "deferred": "events left to the WAL alone for a while, to bound memory",
    "recovered": "events read back from a WAL",
    "refused": "events without a tenant where one is required",
    "filtered": "events that a level or filter behind the queue has kept back",
    "dropped": "events given up by on_queue_full='drop'",
    "lost": "events that could be kept nowhere, or came after shutdown",
    "corrupt": "damaged WAL or DLQ records that were set aside",
    "wal_failures": "events that the WAL could not take at the call",
    "wal_removed": "times that somebody had removed or moved WAL files; they were written again",
    "cut": "events with a value that was cut to the limits",
    "unknown_actor": "events that named no actor",
    "unknown_action": "events whose action is not in the logger's set",
    "unknown_fields": "names in calls that look like a field's, misspelt",
    "refused_fields": "names in calls that are no field, with unknown_fields='refuse'",
    "opaque_values": "events with an object of which only its str() could be stored",
    "encode_failures": "events of which only the action and the error could be kept",
    "filter_failures": "filters behind the queue that raised; their records passed",
    "rendered": "events whose action is a rendered JSON object: a structlog renderer came first",
    "insert_failures": "failed inserts; one insert may carry the batches of many tenants",
    "pruned": "rows removed by retention",
    "retention_failures": "databases that a retention run could not prune",
    "bootstrap_failures": "failed attempts to open the database",
    "threads_died": "threads of the pipeline that failed and were started again",
    "reports_dropped": "reports that on_event and logging were too slow for",
}


class Counters:
    """Named integers that any thread may add to."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may log
        self._values = dict.fromkeys(COUNTERS, 0)  # written by any thread, under the lock
        self._examples: dict[str, str] = {}

    def add(self, name: str, amount: int = 1, *, example: str | None = None) -> None:
        """Add *amount* to the counter *name*; the last *example* goes into the report."""
        with self._lock:
            self._values[name] += amount
            if example is not None:
                self._examples[name] = example

    def example(self, name: str) -> str | None:
        """Return an example of what the counter *name* has counted, if one was given."""
        return self._examples.get(name)

    def add_all(self, amounts: Mapping[str, int]) -> None:
        """Add to several counters in one step: no snapshot sees one without the others."""
        with self._lock:
            for name, amount in amounts.items():
                self._values[name] += amount

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def snapshot(self, **more: int) -> dict[str, int]:
        """Return all counters as they are now, with *more* added."""
        with self._lock:
            found = dict(self._values)
        for name, amount in more.items():
            found[name] += amount
        return found
