"""What the pipeline asks of a database: the Adapter protocol.

Adapters know rows and connections, nothing of logging, the WAL or the DLQ. They are called from
several of the pipeline's threads, never from the application's calling thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeAlias, runtime_checkable

from logbun_logging.event import AuditEvent
from logbun_logging.query import Filters, Pagination, TenantScope

__all__ = [
    "Adapter",
    "Batch",
    "BatchAdapter",
    "EncodedAdapter",
    "EncodedBatch",
    "FileAdapter",
    "ForkAwareAdapter",
    "PruneReport",
    "identity_of",
    "retention_limit",
]

#: Events of one tenant, in order.
Batch: TypeAlias = tuple[str | None, Sequence[AuditEvent]]

#: The same, each event as :func:`~logbun_logging.event.encode_event` wrote it.
EncodedBatch: TypeAlias = tuple[str | None, Sequence[bytes]]

#: Rows pruned (or, in a dry run, that would be), by tenant; None stands for all the others.
PruneReport: TypeAlias = dict[str | None, int]


@runtime_checkable
class Adapter(Protocol):
    """A database that keeps audit events.

    All methods may be called from any thread, several at a time. They may block; the pipeline sees
    to it that nobody waits for them. An error that means "the database cannot be reached" should be
    raised as :class:`~logbun_logging.errors.AdapterUnavailableError`, one that means "these rows
    are refused" as :class:`~logbun_logging.errors.RejectedEventsError`; everything else is tried
    again and then dead-lettered.
    """

    def init(self) -> None:
        """Connect, and create or migrate the table. Called again after a failure."""
        ...

    def bulk_insert(self, tenant_id: str | None, events: Sequence[AuditEvent]) -> bool | None:
        """Store *events* of one tenant, all or none of them, idempotently on ``id``.

        Returning False or raising means that they are not stored.
        """
        ...

    def query(
        self, tenant_id: TenantScope, filters: Filters, pagination: Pagination
    ) -> list[AuditEvent]:
        """Return matching events by ``created_at`` and then ``id``, both descending.

        *tenant_id* None asks for events of no tenant, and only those.
        """
        ...

    def prune(
        self,
        days: int | None,
        *,
        tenants: Mapping[str, int] | None = None,
        dry_run: bool = False,
        now: datetime | None = None,
    ) -> PruneReport:
        """Remove events that are older than *days* (None: keep), with other *days* for *tenants*.

        Works in bounded steps, so that inserts go on meanwhile. With *dry_run* it only counts.
        """
        ...

    def close(self) -> None:
        """Let go of all connections; ``init`` may be called again later."""
        ...


@runtime_checkable
class BatchAdapter(Adapter, Protocol):
    """An adapter that stores the batches of several tenants in one round trip or transaction."""

    def bulk_insert_many(self, batches: Sequence[Batch]) -> bool | None:
        """Store all *batches* or none, idempotently on ``id``."""
        ...


@runtime_checkable
class EncodedAdapter(Adapter, Protocol):
    """An adapter that stores events in the form in which they travel: JSON objects, encoded.

    The pipeline then makes no objects of them, which costs more of the interpreter's time than
    anything else in an insert. ``bulk_insert`` is still called by others.
    """

    def insert_encoded(self, batches: Sequence[EncodedBatch]) -> bool | None:
        """Store all *batches*, of several tenants, or none, idempotently on ``id``."""
        ...


@runtime_checkable
class ForkAwareAdapter(Adapter, Protocol):
    """An adapter whose connections must not be used, nor closed, by a forked child."""

    def after_fork(self) -> None:
        """Forget, in the child, every connection of the parent without closing it."""
        ...


@runtime_checkable
class FileAdapter(Adapter, Protocol):
    """An adapter whose database ``init`` makes if it is missing: a file, in most cases.

    Where each tenant has a database, nothing is made for a tenant that is only asked about; nor
    does the command line make one for a URL that is misspelt.
    """

    def exists(self) -> bool:
        """Tell whether it is there; True of a database of which that cannot be told."""
        ...


def identity_of(adapter: Adapter) -> str:
    """Return what names the database of *adapter*, without secrets.

    An adapter may say it by an attribute ``identity``: the same text for the same database, in
    every process. Otherwise it is the name of its class.
    """
    kind = type(adapter)
    return str(getattr(adapter, "identity", f"{kind.__module__}.{kind.__qualname__}"))


#: Connections that belong to a parent process. Closing them here would close them there.
_inherited: list[object] = []
_inherited_lock = threading.Lock()


def keep_inherited(connection: object) -> None:
    """Keep a parent's connection from being collected, and so closed, in a forked child."""
    with _inherited_lock:
        _inherited.append(connection)


def retention_limit(days: int, now: datetime | None) -> datetime:
    """Return the moment before which events are older than *days*."""
    return (now or datetime.now(UTC)).astimezone(UTC) - timedelta(days=days)
