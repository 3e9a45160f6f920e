"""ClickHouse, on a server, a cluster, or in this process: for more events than one file can hold.

Beside this module, ``table`` has the DDL, ``select`` the pages, ``json_lines`` what is inserted,
``prune`` retention, ``clients`` connections, ``errors`` their errors, ``options`` arguments.

An insert is not a transaction: of one that fails half-way some rows may be there. Every row is the
same when it is inserted again, and the table keeps one of each, so a retry only completes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import msgspec

from logbun_logging.adapters.base import Batch, EncodedBatch, PruneReport, retention_limit
from logbun_logging.adapters.cleartext import warn_of_cleartext
from logbun_logging.adapters.clickhouse import json_lines, table
from logbun_logging.adapters.clickhouse.clients import Connections, Embedded, Server
from logbun_logging.adapters.clickhouse.errors import translated
from logbun_logging.adapters.clickhouse.options import parse_options
from logbun_logging.adapters.clickhouse.prune import Pruning
from logbun_logging.adapters.clickhouse.select import select_page
from logbun_logging.errors import RejectedEventsError
from logbun_logging.event import AuditEvent, decode_event
from logbun_logging.query import Filters, Pagination, TenantScope

__all__ = ["ClickHouseAdapter"]

#: An insert of so many rows makes a good part by itself; smaller ones the server may collect.
_LARGE_INSERT: Final = 5_000

#: The settings of every insert: events of many months may be in one, e.g. of a restored backup.
_INSERT_SETTINGS: Final = {"max_partitions_per_insert_block": 0}


class ClickHouseAdapter:
    """Keeps audit events in a ClickHouse table.

    One of *url*, *host* and *path* says where. What is in a URL counts where the argument of the
    same name is absent; ``database`` to ``timeout`` may also stand in its query part.

    Args:
        url: ``clickhouse://user:password@host:port/database``, ``clickhouses://`` for TLS, or
            ``chdb:///folder`` for the engine in this process.
        host: the server's name.
        port: of its HTTP interface; 8123, with TLS 8443.
        path: the folder of the engine in this process.
        database: made when it is missing; ``default``.
        username: ``default``.
        password: none.
        secure: use TLS.
        retention_days: the table's TTL: the server itself removes older rows, however it is
            pruned. None leaves the TTL as it is. Needs ClickHouse 25.7.
        cluster: makes replicated tables on all servers of that name, behind a distributed one.
        async_insert: the server may collect small inserts of several clients before it writes them;
            the insert still waits until that is done. Not in this process, where there is one.
        timeout: seconds for connecting and for each answer; the engine in this process has none.
        settings: ClickHouse settings sent with every request, e.g. ``{"insert_quorum": "auto"}``.

    Raises:
        ConfigurationError: an argument is not as described, or the driver is missing.
    """

    #: A table for each tenant is what ClickHouse is bad at: tenancy refuses it.
    single_database_only = True

    def __init__(
        self,
        url: str | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        path: str | os.PathLike[str] | None = None,
        database: str | None = None,
        username: str | None = None,
        password: str | None = None,
        secure: bool = False,
        retention_days: int | None = None,
        cluster: str | None = None,
        async_insert: bool = True,
        timeout: float = 30.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._options = parse_options(
            url=url,
            host=host,
            port=port,
            path=path,
            database=database,
            username=username,
            password=password,
            secure=secure,
            retention_days=retention_days,
            cluster=cluster,
            async_insert=async_insert,
            timeout=timeout,
            settings=settings,
        )
        options = self._options
        self.retention_days = options.retention_days
        self._layout = table.Layout(database=options.database, cluster=options.cluster)
        self._connections: Connections
        if options.path is not None:
            self._connections = Embedded(options.path, settings=options.settings)
        else:
            if options.password and not options.secure:
                warn_of_cleartext(options.host, "use clickhouses:// or secure=True")
            login = {
                "host": options.host,
                "port": options.port,
                "username": options.username,
                "password": options.password,
                "interface": "https" if options.secure else "http",
            }
            self._connections = Server(login, timeout=options.timeout, settings=options.settings)

    def __repr__(self) -> str:
        options = self._options
        where = f"path={str(options.path)!r}"
        if options.path is None:
            where = f"host={options.host!r}, port={options.port}"
        return f"ClickHouseAdapter({where}, database={options.database!r})"

    @property
    def identity(self) -> str:
        """What names the database, in every process."""
        options = self._options
        where = options.path or f"{options.host}:{options.port}"
        return f"clickhouse:{where}/{options.database}"

    def exists(self) -> bool:
        """Tell whether the table is there; connects to a server, but makes no folder."""
        path = self._options.path
        if path is not None and not (path / "metadata").is_dir():
            return False
        with translated(repr(self)):
            self._connections.open()
            return bool(self._columns())

    def init(self) -> None:
        """Connect; create or migrate the table; set the TTL.

        Only what is missing is created or changed, so that a login which may do no more than insert
        and select is enough where somebody else has made the table.
        """
        with translated(repr(self)):
            self._connections.open()
            if not self._columns():
                self._create()
            for statement in self._migrations():
                self._command(statement)
            self._pack_columns()

    def _create(self) -> None:
        layout = self._layout
        known = "SELECT 1 FROM system.databases WHERE name = {name:String}"
        if not self._query(known, {"name": layout.database}):
            self._command(layout.create_database())
        for statement in layout.create_tables(self.retention_days):
            self._command(statement)

    def _columns(self) -> dict[str, str]:
        """Return the table's columns and the codec of each, empty where nobody has chosen one."""
        values = {"database": self._layout.database, "table": self._layout.local_name}
        statement = (
            "SELECT name, compression_codec FROM system.columns "
            "WHERE database = {database:String} AND table = {table:String}"
        )
        return {str(name): str(codec) for name, codec in self._query(statement, values)}

    def _pack_columns(self) -> None:
        """Let an older table have the codecs of a new one, if the login may change the table."""
        from clickhouse_connect.driver.exceptions import ClickHouseError  # noqa: PLC0415 - a driver

        with suppress(ClickHouseError):
            for statement in self._layout.modify_codecs(self._columns()):
                self._command(statement)

    def _migrations(self) -> list[str]:
        values = {"database": self._layout.database, "name": self._layout.local_name}
        statement = (
            "SELECT engine_full FROM system.tables "
            "WHERE database = {database:String} AND name = {name:String}"
        )
        ((engine,),) = self._query(statement, values)
        return [
            *self._layout.add_columns(self._columns()),
            *self._layout.modify_ttl(self.retention_days, engine),
        ]

    def bulk_insert(self, tenant_id: str | None, events: Sequence[AuditEvent]) -> bool:
        """Store the events of one tenant."""
        return self.bulk_insert_many([(tenant_id, events)])

    def bulk_insert_many(self, batches: Sequence[Batch]) -> bool:
        """Store the batches of several tenants in one insert: few large parts, not many small."""
        events = [event for _, batch in batches for event in batch]
        if not events:
            return True
        with translated(repr(self)):
            columns = table.to_columns(events)
            with self._connections.client() as client:
                client.insert(
                    self._layout.table,
                    columns,
                    column_names=table.COLUMNS,
                    column_type_names=list(table.COLUMN_TYPES.values()),
                    column_oriented=True,
                    settings=self._insert_settings([event.id.encode() for event in events]),
                )
        return True

    def insert_encoded(self, batches: Sequence[EncodedBatch]) -> bool:
        """Store encoded events of several tenants in one insert, parsed by the engine."""
        found = json_lines.to_lines(batches)
        if found is None:
            return self.bulk_insert_many(_decoded(batches))
        ids, lines = found
        if not ids:
            return True
        compression = self._connections.compression
        if compression:
            import lz4.frame  # noqa: PLC0415 - the driver's own, imported with it

            lines = lz4.frame.compress(lines)
        with translated(repr(self)), self._connections.client() as client:
            client.raw_insert(
                self._layout.table,
                table.COLUMNS,
                lines,
                settings={**json_lines.SETTINGS, **self._insert_settings(ids)},
                fmt=json_lines.FORMAT,
                compression=compression,
            )
        return True

    def _insert_settings(self, ids: Sequence[bytes]) -> dict[str, Any]:
        settings: dict[str, Any] = dict(_INSERT_SETTINGS)
        if self._options.cluster:
            settings["insert_distributed_sync"] = 1  # acknowledged is: on the shards
        if self._options.async_insert and len(ids) < _LARGE_INSERT:
            return {**settings, "async_insert": 1, "wait_for_async_insert": 1}
        # The same batch again is recognised as such and makes no part that has to be merged away.
        token = hashlib.blake2b(b"\n".join(ids), digest_size=16).hexdigest()
        return {**settings, "async_insert": 0, "insert_deduplication_token": token}

    def query(
        self, tenant_id: TenantScope, filters: Filters, pagination: Pagination
    ) -> list[AuditEvent]:
        """Return one page; see :class:`~logbun_logging.adapters.base.Adapter`."""
        with translated(repr(self)):
            return select_page(self._query, self._layout, tenant_id, filters, pagination)

    def prune(
        self,
        days: int | None,
        *,
        tenants: Mapping[str, int] | None = None,
        dry_run: bool = False,
        now: datetime | None = None,
    ) -> PruneReport:
        """Drop the months that are older than *days* as a whole; delete *tenants*' old rows.

        Rows of a month of which *days* have not wholly gone by stay until they have, unless the
        TTL (``retention_days``) takes them before.
        """
        pruning = Pruning(
            self._layout,
            None if days is None else retention_limit(days, now),
            {name: retention_limit(own, now) for name, own in (tenants or {}).items()},
            query=self._query,
            command=self._command,
        )
        with translated(repr(self)):
            return pruning.run(dry_run=dry_run)

    def close(self) -> None:
        """Close every connection."""
        self._connections.close()

    def after_fork(self) -> None:
        """Forget the parent's connections."""
        self._connections.after_fork()

    def _query(self, statement: str, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        # A tenant's rows are on one shard; the others need not be asked.
        settings = {"optimize_skip_unused_shards": 1} if self._options.cluster else None
        with self._connections.client() as client:
            result = client.query(statement, parameters=dict(values), settings=settings)
            return result.result_rows

    def _command(self, statement: str, values: Mapping[str, Any] | None = None) -> None:
        with self._connections.client() as client:
            client.command(statement, parameters=dict(values) if values else None)


def _decoded(batches: Sequence[EncodedBatch]) -> list[Batch]:
    try:
        return [(tenant_id, [*map(decode_event, payloads)]) for tenant_id, payloads in batches]
    except msgspec.MsgspecError as error:
        raise RejectedEventsError(f"not an event: {error}") from error
