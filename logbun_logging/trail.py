"""The audit trail: one namespace, to query and to operate.

:class:`AuditTrail` puts a pipeline together from options, keeps the registry of trails by
namespace, and answers queries on the caller's thread. Queries never wait for the pipeline, nor it
for them.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from logbun_logging._encoding.messages import masked, shown
from logbun_logging._encoding.values import clean_tenant_id, plain_text
from logbun_logging._engine.pipeline import Pipeline
from logbun_logging._process import forks
from logbun_logging._storage.dlq import DeadLetterQueue
from logbun_logging._tenancy.databases import NoDatabaseError
from logbun_logging.adapters.base import PruneReport
from logbun_logging.errors import (
    AdapterUnavailableError,
    LogbunError,
    NotReadyError,
    PruneError,
    QueryError,
    TenantRequiredError,
)
from logbun_logging.event import AuditEvent, Entry
from logbun_logging.options import TrailOptions, TrailOptionsDict, parse_options
from logbun_logging.query import (
    AllTenants,
    Filters,
    Page,
    Pagination,
    QueryFilters,
    TenantScope,
)
from logbun_logging.reader import Reader, TenantReader, in_thread

if TYPE_CHECKING:
    from logbun_logging.handlers import AuditQueueHandler

__all__ = ["AuditTrail", "get_trail", "running_trails"]

_trails: dict[str, AuditTrail] = {}
# The last one of each namespace, for what still comes to it. Both under the lock.
_ended: weakref.WeakValueDictionary[str, AuditTrail] = weakref.WeakValueDictionary()
_needed: dict[str, AuditTrail] = {}  # those among them that are to be opened again or emptied
_registry_lock = threading.RLock()


def _reset_registry_lock() -> None:
    global _registry_lock  # noqa: PLW0603 - another thread may have held it at the fork
    _registry_lock = threading.RLock()


forks.register(_reset_registry_lock)


def get_trail(namespace: str) -> AuditTrail:
    """Return the running trail of *namespace*.

    Raises:
        LookupError: there is none in this process.
    """
    forks.notice_fork()
    trail = _trails.get(namespace)
    if trail is None:
        ended = _ended.get(namespace)
        trail = ended.reopened() if ended is not None else None
    if trail is None:
        known = ", ".join(sorted(_trails)) or "none is configured"
        raise LookupError(f"no audit trail for namespace {namespace!r}; there is: {known}")
    return trail


def running_trails() -> list[AuditTrail]:
    """Return the trails of this process that have not been shut down."""
    return list(_trails.values())


class AuditTrail:
    """One namespace's audit trail.

    A second trail of the same namespace in a process takes over from the first, which is shut down
    after everything in it has been delivered. That is reported as ``namespace_taken_over`` unless
    the first has been closed before, as ``dictConfig`` does when it configures again: two trails
    side by side need two namespaces.

    Args:
        **options: see :class:`~logbun_logging.options.TrailOptionsDict`; ``namespace`` and
            ``adapter`` are required.

    Raises:
        ConfigurationError: an option is not allowed.
    """

    def __init__(self, **options: Unpack[TrailOptionsDict]) -> None:
        forks.notice_fork()
        self.options: TrailOptions = parse_options(options)
        self._pipeline = Pipeline(self.options)
        self._handler: AuditQueueHandler | None = None
        self._suspended = False  # ended by logging, which may yet go on
        self._reopened = False  # and so no longer known to logging.shutdown
        with _registry_lock:
            before = _trails.get(self.options.namespace)
            _trails[self.options.namespace] = self
        if before is not None:
            in_use = not before.pipeline.finished
            before.shutdown()
            if in_use:
                self._pipeline.reporter.report(
                    "namespace_taken_over",
                    reason="another trail of this namespace was open: its events come here now",
                )
        with _registry_lock:
            ended = _ended.pop(self.options.namespace, None)
            _needed.pop(self.options.namespace, None)
            late = ended.pipeline.late.take() if ended is not None else []
        self._deliver_late(late)
        self._pipeline.start_if_left()

    def _deliver_late(self, late: Iterable[Entry]) -> None:
        for entry in late:
            if self._pipeline.submit(entry).queue:
                self._pipeline.buffer([entry])

    def __repr__(self) -> str:
        return f"AuditTrail(namespace={self.options.namespace!r}, mode={self.options.mode!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    @property
    def pipeline(self) -> Pipeline:
        """The running parts; for the handlers."""
        forks.notice_fork()
        return self._pipeline

    @property
    def successor(self) -> AuditTrail | None:
        """The trail that has taken over this one's namespace, if there is one."""
        found = _trails.get(self.options.namespace)
        return None if found is self else found

    def keep_late(self, entry: Entry) -> AuditTrail | bool:
        """Return the trail that takes an event which came after the end.

        If there is none, keep the event, and return whether it is where the mode promises.
        """
        taker = self.reopened()
        if taker is not None:
            return taker
        pipeline = self.pipeline
        with _registry_lock:  # a trail that takes over looks for late events under it
            taker = self.successor or (None if pipeline.closing else self)
            if taker is not None:
                return taker
            last = _ended.get(self.options.namespace, self)
            late = last.pipeline.late
            safe = late.keep(entry)
            if not safe:
                _needed[self.options.namespace] = last
        late.sync()
        return safe

    def reopened(self) -> AuditTrail | None:
        """Return the trail that has the namespace now: this one again, if logging has closed it."""
        with _registry_lock:
            successor = self.successor
            if successor is not None or not (self._suspended and self.pipeline.finished):
                return successor
            if not threading.main_thread().is_alive():
                return None  # logging closes for good then
            late = self._reopen()
        self._deliver_late(late)
        self.pipeline.start_if_left()
        return self

    def _reopen(self) -> list[Entry]:
        self._suspended, self._reopened = False, True
        late = self.pipeline.late.take()
        self.pipeline.reopen()
        _trails[self.options.namespace] = self
        _ended.pop(self.options.namespace, None)
        _needed.pop(self.options.namespace, None)
        return late

    @property
    def handler(self) -> AuditQueueHandler:
        """The handler to add to loggers; always the same one."""
        if self._handler is None:
            # The handler is made of a trail, so this one import goes up, and waits until it is
            # used.
            from logbun_logging.handlers import AuditQueueHandler  # noqa: PLC0415

            with _registry_lock:
                if self._handler is None:
                    self._handler = AuditQueueHandler(trail=self)
        return self._handler

    @property
    def dlq(self) -> DeadLetterQueue:
        """The dead-letter queue: ``list``, ``show``, ``requeue``, ``retry``, ``delete``."""
        return self.pipeline.dlq

    # ── queries ──

    def query(
        self,
        *,
        tenant_id: TenantScope = None,
        limit: int = 50,
        cursor: str | None = None,
        **filters: Unpack[QueryFilters],
    ) -> Page:
        """Return one page of events, newest first.

        Args:
            tenant_id: whose events; None for those of no tenant, and only those. An empty text is
                an error. For every tenant's, pass :data:`~logbun_logging.ALL_TENANTS`.
            limit: events in the page, clamped to 1…1000.
            cursor: ``next_cursor`` of the page before.
            **filters: what the events must match, all of it; see
                :class:`~logbun_logging.QueryFilters`.

        After :meth:`shutdown` the database is opened for the one query, and closed again.

        Raises:
            QueryError: an argument is wrong.
            TenantRequiredError: ``require_tenant_id`` is on, and there is no tenant.
            NotReadyError: the database cannot be reached.
        """
        return self._reader(tenant_id).query(limit=limit, cursor=cursor, **filters)

    def iter(
        self,
        *,
        tenant_id: TenantScope = None,
        limit: int = 500,
        cursor: str | None = None,
        **filters: Unpack[QueryFilters],
    ) -> Iterator[AuditEvent]:
        """Yield every matching event, newest first, reading *limit* at a time.

        Takes the arguments of :meth:`query`. An event that is stored meanwhile is among them only
        if its place has not been read yet. New events are not; one that comes late, from the
        dead-letter queue for example, may be.
        """
        return self._reader(tenant_id).iter(limit=limit, cursor=cursor, **filters)

    async def aquery(
        self,
        *,
        tenant_id: TenantScope = None,
        limit: int = 50,
        cursor: str | None = None,
        **filters: Unpack[QueryFilters],
    ) -> Page:
        """Do what :meth:`query` does without blocking the event loop."""
        return await self._reader(tenant_id).aquery(limit=limit, cursor=cursor, **filters)

    def aiter(
        self,
        *,
        tenant_id: TenantScope = None,
        limit: int = 500,
        cursor: str | None = None,
        **filters: Unpack[QueryFilters],
    ) -> AsyncIterator[AuditEvent]:
        """Do what :meth:`iter` does without blocking the event loop."""
        return self._reader(tenant_id).aiter(limit=limit, cursor=cursor, **filters)

    def for_tenant(self, tenant_id: str) -> TenantReader:
        """Return a reader that sees one tenant only, to hand to that tenant's views.

        Raises:
            QueryError: *tenant_id* is not the id of one tenant: it is empty, None or ALL_TENANTS.
        """
        return TenantReader(self._fetch, tenant_id)

    def _reader(self, tenant_id: TenantScope) -> Reader:
        return Reader(self._fetch, self._scope(tenant_id))

    def _scope(self, tenant_id: TenantScope) -> TenantScope:
        if isinstance(tenant_id, str) and tenant_id:
            return clean_tenant_id(plain_text(tenant_id))
        if not (tenant_id is None or tenant_id == "" or isinstance(tenant_id, AllTenants)):
            allowed = "a string, None or ALL_TENANTS"
            raise QueryError(f"tenant_id={shown('tenant_id', tenant_id)}: allowed is {allowed}")
        if self.options.require_tenant_id:
            raise TenantRequiredError(
                f"tenant_id={tenant_id!r}: require_tenant_id is on, so name a tenant"
            )
        if tenant_id == "":
            # Most likely an id that is missing: not to be answered with what is nobody's.
            allowed = "a tenant, or None for the events of no tenant"
            raise QueryError(f"tenant_id='': allowed is {allowed}")
        return tenant_id

    def _fetch(
        self, tenant_id: TenantScope, filters: Filters, pagination: Pagination
    ) -> list[AuditEvent]:
        databases = self.pipeline.databases
        try:
            tenant = tenant_id if isinstance(tenant_id, str) else None
            with self._open_for_now(), databases.lease(tenant, create=False) as target:
                return target.adapter.query(tenant_id, filters, pagination)
        except NoDatabaseError:
            return []
        except AdapterUnavailableError as error:
            raise NotReadyError(
                f"{self!r}: the database cannot be reached: {masked(str(error))}"
            ) from error
        except LogbunError:
            raise
        except Exception as error:
            if self.pipeline.opened.is_set():
                raise
            raise NotReadyError(
                f"{self!r}: the database is not open yet: {masked(str(error))}"
            ) from error

    @contextmanager
    def _open_for_now(self) -> Iterator[None]:
        """Close again what is opened where no pipeline will: after the end, or before a fork."""
        try:
            yield
        finally:
            if self.pipeline.finished or forks.awaits_fork():
                self.pipeline.databases.close()

    # ── operations ──

    def ready(self, timeout: float = 10.0) -> bool:
        """Start, and wait until the database is open; return whether it is.

        Args:
            timeout: in seconds.

        False at once in the process of uWSGI that loads the application for its workers.
        """
        self.pipeline.start()
        if forks.awaits_fork():
            return False
        self.pipeline.maintenance.wake()
        return self.pipeline.opened.wait(timeout)

    def flush(self, timeout: float | None = None) -> bool:
        """Deliver everything logged before this call; return whether that was done in time.

        "Delivered" is in the database or, after the retries, in the DLQ. False: time ran out, or
        events wait in memory or in the WAL alone, from where they go on being delivered.

        Args:
            timeout: in seconds; ``flush_timeout`` by default.
        """
        return self.pipeline.flush(self.options.flush_timeout if timeout is None else timeout)

    def shutdown(self, timeout: float | None = None) -> bool:
        """Flush, acknowledge the WAL, stop the threads and close the adapters.

        What cannot be delivered within *timeout* seconds (``flush_timeout`` by default) stays in
        the WAL or, in volatile mode, goes to the DLQ. Returns whether everything was delivered. A
        second call does nothing.
        """
        self._suspended = False
        return self._end(timeout)

    def suspend(self) -> None:
        """Shut down for :mod:`logging`; what is logged nevertheless opens the trail again.

        Logging closes all handlers at its end, but also when it is configured anew: those, too,
        that loggers go on using because the new configuration does not name them.
        """
        if not self.pipeline.closing and threading.main_thread().is_alive():
            self._suspended = True
        self._end(None)

    def end_reopened(self) -> None:
        """At exit: deliver what came after logging had closed the trail."""
        with _registry_lock:
            late = self._reopen() if self._suspended and self.pipeline.finished else []
        self._deliver_late(late)
        if self._reopened:
            self.shutdown()

    def _end(self, timeout: float | None) -> bool:
        limit = self.options.flush_timeout if timeout is None else timeout
        delivered = self.pipeline.shutdown(limit)
        with _registry_lock:
            # An event may have opened the trail again meanwhile.
            if _trails.get(self.options.namespace) is self and self.pipeline.finished:
                del _trails[self.options.namespace]
                _ended[self.options.namespace] = self
                if self._suspended or self._pipeline.late.waiting:
                    _needed[self.options.namespace] = self
                else:
                    _needed.pop(self.options.namespace, None)
        return delivered

    def run_maintenance(self) -> bool:
        """Flush, recover abandoned WALs, scan the DLQ once, prune; False if a pass runs already."""
        self.pipeline.start()
        if forks.awaits_fork():
            return False
        self.pipeline.flush(self.options.flush_timeout)
        passed = self.pipeline.maintenance.run_pass()
        if passed:
            with suppress(PruneError):  # counted and reported
                self.prune()
        return passed

    def prune(self, *, dry_run: bool = False, trust_clock: bool = False) -> PruneReport:
        """Prune now, by ``retention``, and return the rows removed, by tenant.

        None stands for all tenants that have no days of their own. Without ``retention.days`` and
        ``retention.tenants`` there is nothing to prune.

        Args:
            dry_run: remove nothing, only count what would go.
            trust_clock: prune although the clock is far from where it was when it was looked at
                last: it is right. The scheduled runs believe it from then on, too.

        Raises:
            PruneError: some databases could not be pruned; it has the report of all others. None
                was if a failure is a :class:`~logbun_logging.errors.ClockError`.
        """
        with self._open_for_now():
            retention = self.pipeline.retention
            return retention.prune(dry_run=dry_run, trust_clock=trust_clock)

    async def aprune(self, *, dry_run: bool = False, trust_clock: bool = False) -> PruneReport:
        """Do what :meth:`prune` does without blocking the event loop."""
        return await in_thread(self.prune, dry_run=dry_run, trust_clock=trust_clock)

    async def aready(self, timeout: float = 10.0) -> bool:  # noqa: ASYNC109 - as its twin
        """Do what :meth:`ready` does without blocking the event loop."""
        return await in_thread(self.ready, timeout)

    async def aflush(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as its twin
        """Do what :meth:`flush` does without blocking the event loop."""
        return await in_thread(self.flush, timeout)

    async def ashutdown(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as its twin
        """Do what :meth:`shutdown` does without blocking the event loop."""
        return await in_thread(self.shutdown, timeout)

    def stats(self) -> dict[str, Any]:
        """Return counters and gauges as they are now; cheap enough for a metrics scrape.

        Besides the counters of :data:`~logbun_logging._process.counters.COUNTERS`: ``queued`` and
        ``queued_bytes`` (in memory), ``queued_by_tenant``, ``wal`` (``segments``, ``bytes``,
        ``adopted_bytes``, ``oldest``, ``deferred``), ``dlq`` (files and events by state,
        ``error`` if it cannot be read), ``ready``,
        ``circuit_open``, ``databases`` (``open``, ``down``, and ``in_use`` where each tenant has
        its own), ``mode``.
        """
        parts = self.pipeline
        segments, size, oldest = parts.wal.usage()
        adopted, oldest_adopted = parts.recovery.adopted()
        return {
            **parts.buffers.snapshot(),
            "wal": {
                "segments": segments,
                "bytes": size,
                "adopted_bytes": adopted,
                "oldest": min(filter(None, (oldest, oldest_adopted)), default=None),
                "deferred": parts.recovery.deferred() + parts.late.deferred,
            },
            "dlq": parts.dlq.counts(),
            "ready": parts.opened.is_set(),
            "circuit_open": parts.databases.figures()["down"] > 0,
            "databases": parts.databases.figures(),
            "mode": self.options.mode,
        }


def _end_reopened() -> None:
    """At exit: shut down what logging has closed once already, and so does not close again."""
    for trail in [*_trails.values(), *_ended.values()]:
        trail.end_reopened()


atexit.register(_end_reopened)
