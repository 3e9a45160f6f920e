"""An adapter without a database: what the contract compares every other one with."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime

from logbun_logging.adapters.base import Batch, PruneReport, retention_limit
from logbun_logging.errors import RejectedEventsError
from logbun_logging.event import AuditEvent, utc_text
from logbun_logging.query import AllTenants, Filters, Pagination, TenantScope

__all__ = ["MemoryAdapter"]


class MemoryAdapter:
    """Keeps events in memory for as long as it lives; for tests alone."""

    def __init__(self) -> None:
        self._events: dict[str, AuditEvent] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"MemoryAdapter({len(self._events)} events)"

    def init(self) -> None:
        """Do nothing."""

    def bulk_insert(self, tenant_id: str | None, events: Sequence[AuditEvent]) -> bool:
        """Keep the events of one tenant."""
        return self.bulk_insert_many([(tenant_id, events)])

    def bulk_insert_many(self, batches: Sequence[Batch]) -> bool:
        """Keep the events of several tenants."""
        events = [event for _, batch in batches for event in batch]
        for event in events:
            if not all(isinstance(value, str) for value in (event.id, event.action)):
                raise RejectedEventsError(f"an event without an id or an action: {event!r}")
        with self._lock:
            for event in events:
                self._events.setdefault(event.id, event)
        return True

    def query(
        self, tenant_id: TenantScope, filters: Filters, pagination: Pagination
    ) -> list[AuditEvent]:
        """Return one page; see :class:`~logbun_logging.adapters.base.Adapter`."""
        with self._lock:
            found = [
                event
                for event in self._events.values()
                if (isinstance(tenant_id, AllTenants) or event.tenant_id == tenant_id)
                and _matches(event, filters)
                and (pagination.after is None or _place(event) < pagination.after)
            ]
        return sorted(found, key=_place, reverse=True)[: pagination.limit]

    def prune(
        self,
        days: int | None,
        *,
        tenants: Mapping[str, int] | None = None,
        dry_run: bool = False,
        now: datetime | None = None,
    ) -> PruneReport:
        """Forget old events."""
        own = {tenant: utc_text(retention_limit(d, now)) for tenant, d in (tenants or {}).items()}
        limit = None if days is None else utc_text(retention_limit(days, now))
        report: PruneReport = dict.fromkeys(own, 0)
        if limit is not None:
            report[None] = 0
        with self._lock:
            for event in list(self._events.values()):
                key = event.tenant_id if event.tenant_id in own else None
                before = limit if key is None else own[key]
                if before is not None and event.created_at < before:
                    report[key] += 1
                    if not dry_run:
                        del self._events[event.id]
        return report

    def close(self) -> None:
        """Do nothing."""


def _place(event: AuditEvent) -> tuple[str, str]:
    return event.created_at, event.id


def _matches(event: AuditEvent, filters: Filters) -> bool:
    if filters.actions or filters.action_prefixes:
        named = event.action in filters.actions
        if not named and not event.action.startswith(filters.action_prefixes):
            return False
    if filters.start is not None and event.created_at < filters.start:
        return False
    if filters.end is not None and event.created_at > filters.end:
        return False
    return all(getattr(event, name) == value for name, value in filters.equal)
