"""The ``audit_logs`` table as ClickHouse knows it: DDL, and the columns of a batch.

One table for all tenants, cut into months by ``PARTITION BY`` and sorted by tenant and time, so a
tenant's page is a short range of it and an old month goes as a whole. The sorting key ends in the
``id``: ``ReplacingMergeTree`` makes one row of what a retry has inserted again. It does so when it
merges, some time later; until then a query passes over the copies, which lie side by side in the
order of a page.

``created_at`` goes in and out as whole microseconds: no text is parsed in anybody's time zone.
``tenant_id`` is not Nullable, because a cluster finds a tenant's shard by it only then; an empty
text stands for no tenant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from logbun_logging.errors import RejectedEventsError
from logbun_logging.event import FIELD_NAMES, OBJECT_FIELDS, AuditEvent

__all__ = [
    "CODECS",
    "COLUMNS",
    "COLUMN_TYPES",
    "EPOCH",
    "Layout",
    "is_month",
    "month_end",
    "quoted",
    "tenant_key",
    "tenant_of",
    "to_columns",
    "to_micros",
]

TABLE: Final = "audit_logs"
COLUMNS: Final = FIELD_NAMES

_SPECIAL: Final = {
    "id": "String",
    "created_at": "DateTime64(6, 'UTC')",
    "action": "LowCardinality(String)",
    "actor_id": "String",
    "tenant_id": "String",  # see tenant_key
    # A dictionary pays where there are few different values; others compress better as they are.
    "entity_type": "LowCardinality(Nullable(String))",
    "outcome": "LowCardinality(Nullable(String))",
    "user_agent": "LowCardinality(Nullable(String))",
}

#: Column name to ClickHouse type, in the order of the event's fields.
COLUMN_TYPES: Final = {name: _SPECIAL.get(name, "Nullable(String)") for name in COLUMNS}

#: How columns are packed that make up most of the table: random ids, times, and JSON. Together they
#: halve it. The others keep the server's own choice, which unpacks faster.
CODECS: Final = {
    "created_at": "Delta, ZSTD(1)",
    **dict.fromkeys(("id", "request_id", *OBJECT_FIELDS), "ZSTD(1)"),
}

_REQUIRED: Final = frozenset({"id", "action", "actor_id"})

#: Filtered fields with many values. A filter over 8,192 rows lets ClickHouse pass over them.
_BLOOM_FILTERS: Final = ("actor_id", "entity_id", "request_id")

#: Settings of a table of our own. An insert that was acknowledged is synced to the disk, because
#: the write-ahead log lets go of it then; the window lets a retry of the same insert do nothing.
_TABLE_SETTINGS: Final = {"fsync_after_insert": 1, "fsync_part_directory": 1}
_DEDUPLICATION_WINDOW: Final = 1000

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder().encode

#: What a month's partition is called, e.g. ``202601``.
_MONTH: Final = re.compile(r"\d{6}", re.ASCII)


def quoted(name: str) -> str:
    """Return an identifier for SQL text; :class:`Layout` gets only names that were checked."""
    return f"`{name}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the table is: in one database, or spread over a cluster.

    In a cluster the rows are in :attr:`local` tables, replicated within a shard, and ``audit_logs``
    is a ``Distributed`` table that sends each tenant's rows to one shard.

    Attributes:
        database: a checked identifier.
        cluster: a checked identifier, or None.
    """

    database: str
    cluster: str | None = None

    @property
    def table(self) -> str:
        """What is inserted into and queried."""
        return f"{quoted(self.database)}.{quoted(TABLE)}"

    @property
    def local_name(self) -> str:
        """The name of the table that has the rows."""
        return f"{TABLE}_local" if self.cluster else TABLE

    @property
    def local(self) -> str:
        """The table that has the rows, as SQL."""
        return f"{quoted(self.database)}.{quoted(self.local_name)}"

    @property
    def _on_cluster(self) -> str:
        return f" ON CLUSTER {quoted(self.cluster)}" if self.cluster else ""

    def create_database(self) -> str:
        """Return the statement that creates the database."""
        return f"CREATE DATABASE IF NOT EXISTS {quoted(self.database)}{self._on_cluster}"

    def create_tables(self, retention_days: int | None) -> list[str]:
        """Return the statements that create what is missing."""
        columns = [_column_definition(name) for name in COLUMNS]
        columns += [
            f"INDEX {quoted(f'{name}_bloom')} {quoted(name)} TYPE bloom_filter GRANULARITY 1"
            for name in _BLOOM_FILTERS
        ]
        settings = dict(_TABLE_SETTINGS)
        engine = "ReplacingMergeTree"
        if self.cluster:
            # The path has no {uuid}: a replica that is added later must find the same one.
            path = "/clickhouse/tables/{shard}/{database}/{table}"
            engine = f"ReplicatedReplacingMergeTree('{path}', '{{replica}}')"
        else:
            settings["non_replicated_deduplication_window"] = _DEDUPLICATION_WINDOW
        ttl = f"\nTTL {_ttl(retention_days)}" if retention_days else ""
        statements = [
            f"CREATE TABLE IF NOT EXISTS {self.local}{self._on_cluster}\n(\n    "
            + ",\n    ".join(columns)
            + f"\n)\nENGINE = {engine}\nPARTITION BY toYYYYMM(created_at)"
            + f"\nORDER BY (tenant_id, created_at, id){ttl}\nSETTINGS "
            + ", ".join(f"{name} = {value}" for name, value in settings.items())
        ]
        if self.cluster:
            names = (self.cluster, self.database, self.local_name)
            target = ", ".join([*(f"'{name}'" for name in names), "cityHash64(tenant_id)"])
            statements.append(
                f"CREATE TABLE IF NOT EXISTS {self.table}{self._on_cluster} AS {self.local}\n"
                f"ENGINE = Distributed({target})"
            )
        return statements

    def add_columns(self, present: Collection[str]) -> list[str]:
        """Return the statements that add what a table of an older version lacks."""
        missing = [name for name in COLUMNS if name not in present]
        if not missing:
            return []
        added = ", ".join(
            f"ADD COLUMN IF NOT EXISTS {_column_definition(name)}" for name in missing
        )
        tables = dict.fromkeys((self.local, self.table))
        return [f"ALTER TABLE {table}{self._on_cluster} {added}" for table in tables]

    def modify_ttl(self, retention_days: int | None, engine: str) -> list[str]:
        """Return the statement that changes the TTL of a table whose *engine* clause is given."""
        if retention_days is None or f"TTL {_ttl(retention_days)}" in engine:
            return []
        return [f"ALTER TABLE {self.local}{self._on_cluster} MODIFY TTL {_ttl(retention_days)}"]

    def modify_codecs(self, present: Mapping[str, str]) -> list[str]:
        """Return the statement that packs columns as a new table would; *present* is their codecs.

        Columns for which somebody has chosen a codec keep it. Old rows are packed when they are
        merged.
        """
        changed = ", ".join(
            f"MODIFY COLUMN {quoted(name)} CODEC({codec})"
            for name, codec in CODECS.items()
            if present.get(name) == ""
        )
        return [f"ALTER TABLE {self.local}{self._on_cluster} {changed}"] if changed else []

    def drop_partition(self, month: str) -> str:
        """Return the statement that drops a month.

        Raises:
            ValueError: it is not the name of one.
        """
        return f"ALTER TABLE {self.local}{self._on_cluster} DROP PARTITION ID '{_checked(month)}'"

    def delete(self, month: str, where: str) -> str:
        """Return the statement that deletes the matching rows of a month.

        Raises:
            ValueError: it is not the name of one.
        """
        partition = f"IN PARTITION ID '{_checked(month)}'"
        return f"DELETE FROM {self.local}{self._on_cluster} {partition} WHERE {where}"


def _column_definition(name: str) -> str:
    codec = f" CODEC({CODECS[name]})" if name in CODECS else ""
    return f"{quoted(name)} {COLUMN_TYPES[name]}{codec}"


def _ttl(retention_days: int) -> str:
    return f"created_at + toIntervalDay({retention_days:d})"


def is_month(partition: str) -> bool:
    """Tell whether a partition id is that of a month, and so may go into SQL text."""
    return bool(_MONTH.fullmatch(partition)) and 1 <= int(partition[4:]) <= 12


def _checked(month: str) -> str:
    if not is_month(month):
        raise ValueError(f"not the partition of a month: {month!r}")
    return month


def month_end(month: str) -> datetime:
    """Return the first moment after a month such as ``202601``."""
    year, number = divmod(int(_checked(month)), 100)
    if (year, number) == (9999, 12):
        return datetime.max.replace(tzinfo=UTC)
    return datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)


def tenant_key(tenant_id: str | None) -> str:
    """Return what stands for a tenant: itself, but an empty text for None.

    One that is empty, or begins with the character NUL, has a NUL in front.
    """
    if tenant_id is None:
        return ""
    return f"\0{tenant_id}" if not tenant_id or tenant_id[0] == "\0" else tenant_id


def tenant_of(key: str) -> str | None:
    """Return the tenant that :func:`tenant_key` has made *key* of."""
    if not key:
        return None
    return key[1:] if key[0] == "\0" else key


def to_micros(moment: str | datetime) -> int:
    """Return a moment as microseconds since 1970.

    Raises:
        ValueError: it is not one, or does not say that it is in UTC.
    """
    try:
        parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        since = parsed - EPOCH
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a time in UTC: {moment!r}") from error
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def to_columns(events: Sequence[AuditEvent]) -> list[Sequence[Any]]:
    """Return the values of *events* by column, objects as JSON text.

    Raises:
        RejectedEventsError: an event has a value that its column cannot hold.
    """
    try:
        columns = zip(*map(msgspec.structs.astuple, events), strict=True)
        return [_column(name, values) for name, values in zip(COLUMNS, columns, strict=True)]
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise RejectedEventsError(str(error)) from error


def _column(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if name == "created_at":
        return [to_micros(value) for value in values]
    if name in OBJECT_FIELDS:
        return [None if value is None else _encode(value) for value in values]
    kinds = {str} if name in _REQUIRED else {str, type(None)}
    if not kinds.issuperset(map(type, values)):
        wrong = next(value for value in values if type(value) not in kinds)
        raise TypeError(f"{name}={wrong!r:.100}: allowed is a string")
    return [tenant_key(value) for value in values] if name == "tenant_id" else values
