"""Pruning where SQLite's SQL is spoken: old rows go in the order of time, a bounded number at once.

Each step starts where the one before ended: rows that are kept longer than others are passed once,
not again with each step. The adapters say how rows are counted and how one step is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from logbun_logging.adapters._sql.table import TABLE
from logbun_logging.adapters.base import PruneReport, retention_limit
from logbun_logging.event import utc_text

__all__ = [
    "STEP",
    "Step",
    "count_rows",
    "delete_expired",
    "delete_rows",
    "expired_rows",
    "prune",
]

#: Rows deleted in a transaction, about 5 ms of it: what a writer waits for meanwhile.
STEP: Final = 500


class Step(NamedTuple):
    """What one step did.

    Attributes:
        removed: rows that it removed.
        last: time and id of the last row that it found; None if those were fewer than a step has.
    """

    removed: int
    last: tuple[str, str] | None


#: Given a condition and its values, returns how many rows match.
Count: TypeAlias = Callable[[str, Sequence[Any]], int]

#: Removes the next :data:`STEP` rows that match; the last two values say after which.
Remove: TypeAlias = Callable[[str, Sequence[Any]], Step]


def prune(
    count: Count,
    remove: Remove,
    days: int | None,
    tenants: Mapping[str, int] | None,
    *,
    dry_run: bool,
    now: datetime | None,
) -> PruneReport:
    """Do what :meth:`~logbun_logging.adapters.base.Adapter.prune` promises."""
    return {
        tenant: count(where, values) if dry_run else _remove_all(remove, where, values)
        for tenant, where, values in _expired(days, tenants or {}, now)
    }


def _expired(
    days: int | None, tenants: Mapping[str, int], now: datetime | None
) -> Iterator[tuple[str | None, str, tuple[str, ...]]]:
    """Yield what has expired: of each tenant with days of its own, then (None) of all others."""
    for tenant, tenant_days in tenants.items():
        before = utc_text(retention_limit(tenant_days, now))
        yield tenant, "tenant_id = ? AND created_at < ?", (tenant, before)
    if days is not None:
        before = utc_text(retention_limit(days, now))
        yield None, f"created_at < ?{_not_tenants(list(tenants))}", (before, *tenants)


def _remove_all(remove: Remove, where: str, values: tuple[str, ...]) -> int:
    removed = 0
    place: tuple[str, str] | None = ("", "")
    while place is not None:
        started = time.monotonic()
        step = remove(where, (*values, *place))
        removed += step.removed
        place = step.last
        if place is not None:
            # Neither a mutex nor SQLite's lock queues who waits: without a pause as long as the
            # step, a writer would find the door shut again and again.
            time.sleep(time.monotonic() - started)
    return removed


def _not_tenants(tenants: Sequence[str]) -> str:
    """Return the condition that leaves out the tenants which have a retention of their own."""
    if not tenants:
        return ""
    return f" AND (tenant_id IS NULL OR tenant_id NOT IN ({', '.join('?' * len(tenants))}))"


def count_rows(where: str) -> str:
    """Return the statement that counts the rows that match."""
    return f"SELECT count(*) FROM {TABLE} WHERE {where}"


def expired_rows(where: str, rows: int) -> str:
    """Return the statement that finds the time and id of the next *rows* rows that match.

    Its last two parameters are those of the row after which to go on, at first two empty texts.
    """
    return (
        f"SELECT created_at, id FROM {TABLE} WHERE {where} "
        f"AND (created_at, id) > (?, ?) ORDER BY created_at, id LIMIT {rows}"
    )


def delete_rows(rows: int) -> str:
    """Return the statement that deletes *rows* rows by their ids."""
    return f"DELETE FROM {TABLE} WHERE id IN ({', '.join('?' * rows)})"


def delete_expired(where: str, rows: int) -> str:
    """Return the statement that deletes what :func:`expired_rows` would find, and returns it."""
    found = expired_rows(where, rows)
    return f"DELETE FROM {TABLE} WHERE id IN (SELECT id FROM ({found})) RETURNING created_at, id"
