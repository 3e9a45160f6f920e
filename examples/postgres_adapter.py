"""A complete adapter of your own: PostgreSQL, by psycopg 3.

Try it on a database that you have (``pip install 'psycopg[binary]'``)::

    python examples/postgres_adapter.py postgresql://user:password@localhost/audit

``docs/how-to/custom-adapters.md`` explains it. ``tests/contract/test_postgres_example.py`` holds it
to the contract that the library's own adapters keep, on a real server that is killed and hangs.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import psycopg

from logbun_logging import (
    AdapterUnavailableError,
    AuditEvent,
    AuditTrail,
    ConfigurationError,
    RejectedEventsError,
)
from logbun_logging.adapters import EncodedBatch, PruneReport
from logbun_logging.adapters.base import keep_inherited, retention_limit
from logbun_logging.adapters.sql import COLUMNS, from_row
from logbun_logging.event import encode_event
from logbun_logging.query import AllTenants, Filters, Pagination, TenantScope

#: Types that are not ``text``. ``json`` keeps numbers as they were written; ``jsonb`` would not.
TYPES = {
    "id": "uuid",
    "created_at": "timestamptz",
    **dict.fromkeys(("old_values", "new_values", "metadata"), "json"),
}
COLUMN_TYPES = {name: TYPES.get(name, "text") for name in COLUMNS}
REQUIRED = {"id": "PRIMARY KEY", **dict.fromkeys(("created_at", "action", "actor_id"), "NOT NULL")}

#: Brings any older table up to date, and a missing one into being.
MIGRATION = (
    "CREATE TABLE IF NOT EXISTS audit_logs (id uuid PRIMARY KEY)",
    *(
        f"ALTER TABLE audit_logs ADD COLUMN IF NOT EXISTS {name} {kind} {REQUIRED.get(name, '')}"
        for name, kind in COLUMN_TYPES.items()
    ),
    "CREATE INDEX IF NOT EXISTS audit_logs_time ON audit_logs (created_at, id)",
    "CREATE INDEX IF NOT EXISTS audit_logs_tenant ON audit_logs (tenant_id, created_at, id)",
    "CREATE INDEX IF NOT EXISTS audit_logs_actor ON audit_logs (tenant_id, actor_id, created_at)",
)

#: A whole batch is one JSON array of the events as they travel: one statement, one parameter, one
#: round trip. What an event does not name has its default. The order keeps two inserts of the same
#: events from waiting for each other for ever.
INSERT = (
    f"INSERT INTO audit_logs ({', '.join(COLUMNS)}) SELECT "
    + ", ".join("coalesce(actor_id, 'unknown')" if n == "actor_id" else n for n in COLUMNS)
    + " FROM json_to_recordset(%s::json) AS event("
    + ", ".join(f"{name} {kind}" for name, kind in COLUMN_TYPES.items())
    + ") ORDER BY id ON CONFLICT (id) DO NOTHING"
)
#: Every column as the text that the event has.
TEXT = {"created_at": """to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""}
SELECTED = ", ".join(TEXT.get(name, f"{name}::text") for name in COLUMNS)

#: Any number that other programs on the same database do not use for the same.
MIGRATION_LOCK = 0x10_6B_0A
PRUNE_STEP = 5_000


class PostgresAdapter:
    """Keeps audit events in PostgreSQL.

    Args:
        dsn: what ``psycopg.connect`` takes.
        timeout: seconds in which the server must answer each call; at least 2.
    """

    def __init__(self, dsn: str, *, timeout: float = 10.0) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 2:
            raise ConfigurationError("adapter.timeout", timeout, "2 seconds or more")
        self.dsn = dsn
        self.timeout = timeout
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection] = []
        self._is_open = False

    def init(self) -> None:
        self._is_open = True
        with self._connection() as connection, connection.transaction():
            # IF NOT EXISTS looks first and creates then: two processes would still collide.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
            for statement in MIGRATION:
                connection.execute(statement)

    def bulk_insert(self, tenant_id: str | None, events: Sequence[AuditEvent]) -> bool:
        return self.insert_encoded([(tenant_id, [encode_event(event) for event in events])])

    def insert_encoded(self, batches: Sequence[EncodedBatch]) -> bool:
        """Store the encoded events of several tenants; adapters need not have this."""
        events = b",".join(event for _, batch in batches for event in batch)
        with self._connection() as connection:
            connection.execute(INSERT, (f"[{events.decode()}]",))
        return True

    def query(
        self, tenant_id: TenantScope, filters: Filters, pagination: Pagination
    ) -> list[AuditEvent]:
        where, values = conditions(tenant_id, filters, pagination)
        statement = (
            f"SELECT {SELECTED} FROM audit_logs WHERE {' AND '.join(where)} "
            "ORDER BY audit_logs.created_at DESC, audit_logs.id DESC LIMIT %s"
        )
        with self._connection() as connection:
            rows = connection.execute(statement, [*values, pagination.limit]).fetchall()
        return [from_row(row) for row in rows]

    def prune(
        self,
        days: int | None,
        *,
        tenants: Mapping[str, int] | None = None,
        dry_run: bool = False,
        now: datetime | None = None,
    ) -> PruneReport:
        own = dict(tenants or {})
        report: PruneReport = {}
        for tenant, tenant_days in own.items():
            values = (retention_limit(tenant_days, now), tenant)
            report[tenant] = self._prune("created_at < %s AND tenant_id = %s", values, dry_run)
        if days is not None:
            others = "created_at < %s AND (tenant_id IS NULL OR tenant_id <> ALL (%s))"
            report[None] = self._prune(others, (retention_limit(days, now), list(own)), dry_run)
        return report

    def _prune(self, where: str, values: tuple[Any, ...], dry_run: bool) -> int:
        if dry_run:
            with self._connection() as connection:
                count = f"SELECT count(*) FROM audit_logs WHERE {where}"
                return sum(row[0] for row in connection.execute(count, values))
        removed = 0
        oldest = f"SELECT id FROM audit_logs WHERE {where} ORDER BY created_at LIMIT {PRUNE_STEP}"
        while True:  # a step in each transaction, so that none takes long
            with self._connection() as connection:
                step = connection.execute(
                    f"DELETE FROM audit_logs WHERE id IN ({oldest})", values
                ).rowcount
            removed += step
            if step < PRUNE_STEP:
                return removed

    def close(self) -> None:
        self._is_open = False
        self._close_idle()

    def _close_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def after_fork(self) -> None:
        """Forget, in a forked child, the connections of its parent; adapters need not have this."""
        keep_inherited(self._idle)
        self._lock = threading.Lock()
        self._idle = []

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection]:
        """Lend a connection, and say in the library's terms what went wrong."""
        if not self._is_open:
            raise AdapterUnavailableError("the adapter is not open")
        try:
            connection = self._take()
            # Nothing else makes a call return while the server hangs.
            alarm = threading.Timer(self.timeout, hang_up, [connection])
            alarm.daemon = True
            alarm.start()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            finally:
                alarm.cancel()
            self._give_back(connection)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise RejectedEventsError(f"PostgreSQL refuses the rows: {error}") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            self._close_idle()  # a server that went has taken these with it
            raise AdapterUnavailableError(f"PostgreSQL cannot be reached: {error}") from error

    def _take(self) -> psycopg.Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        # Each statement is a transaction of its own unless the code says otherwise.
        return psycopg.connect(
            self.dsn,
            autocommit=True,
            connect_timeout=int(self.timeout),
            options="-c timezone=UTC",
        )

    def _give_back(self, connection: psycopg.Connection) -> None:
        with self._lock:
            if self._is_open:
                self._idle.append(connection)
                return
        connection.close()


def hang_up(connection: psycopg.Connection) -> None:
    """Cut a connection that a thread waits for; its call then raises OperationalError."""
    with (
        suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def conditions(
    tenant_id: TenantScope, filters: Filters, pagination: Pagination
) -> tuple[list[str], list[Any]]:
    """Return the conditions of a query and their parameters."""
    where: list[str] = ["true"]
    values: list[Any] = []
    if not isinstance(tenant_id, AllTenants):
        where.append("tenant_id IS NOT DISTINCT FROM %s::text")
        values.append(tenant_id)
    if filters.actions or filters.action_prefixes:
        prefixes = "EXISTS (SELECT FROM unnest(%s::text[]) AS p WHERE starts_with(action, p))"
        where.append(f"(action = ANY (%s) OR {prefixes})")
        values += [list(filters.actions), list(filters.action_prefixes)]
    for name, value in filters.equal:
        where.append(f"{name} = %s")
        values.append(value)
    if filters.start is not None:
        where.append("created_at >= %s::timestamptz")
        values.append(filters.start)
    if filters.end is not None:
        where.append("created_at <= %s::timestamptz")
        values.append(filters.end)
    if pagination.after is not None:
        where.append("(created_at, id) < (%s::timestamptz, %s::uuid)")
        values += pagination.after
    return where, values


if __name__ == "__main__":
    with AuditTrail(namespace="postgres", adapter=PostgresAdapter(sys.argv[1])) as trail:
        audit_logger = logging.getLogger("audit")
        audit_logger.setLevel(logging.INFO)
        audit_logger.addHandler(trail.handler)
        audit_logger.info("course.created", extra={"tenant_id": "t1", "actor_id": "u1"})
        trail.flush()
        print(trail.query(tenant_id="t1").logs[0])
