"""The ``audit_logs`` table as SQLite and libSQL know it: DDL, rows, and INSERT statements.

The table is WITHOUT ROWID: it is clustered by the UUIDv7 ``id``, so inserts append, and every index
ends in ``id`` by itself, which is the order that pages are read in. Each filter of one tenant has
an index that leads with the tenant and ends in the time, so a page costs the same wherever it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from logbun_logging.errors import RejectedEventsError
from logbun_logging.event import FIELD_NAMES, OBJECT_FIELDS, AuditEvent, decode_object, utc_text

__all__ = [
    "COLUMNS",
    "CREATE_TABLE",
    "INDEXES",
    "INSERT_JSON",
    "MAX_ROWS_PER_STATEMENT",
    "NAMES",
    "TABLE",
    "UNIQUE_ID",
    "add_column",
    "encoded_values",
    "from_row",
    "insert_statement",
    "lacks_something",
    "time_text",
    "to_row",
    "unique_id",
    "values_of",
]

TABLE: Final = "audit_logs"
COLUMNS: Final = FIELD_NAMES

_REQUIRED: Final = {"id": "TEXT NOT NULL PRIMARY KEY", "created_at": "TEXT NOT NULL"}
_COLUMN_TYPES: Final = {
    name: _REQUIRED.get(name, "TEXT NOT NULL" if name in {"action", "actor_id"} else "TEXT")
    for name in COLUMNS
}

#: What each column holds, for who looks at the file with ``.schema``.
_COMMENTS: Final = {
    "id": "UUIDv7, in the order of the calls of a process",
    "created_at": "UTC, as text: 2026-01-31T12:00:00.000001Z",
    "action": "what happened, e.g. course.created",
    "actor_id": "who did it",
    "tenant_id": "whose data it belongs to; NULL: no tenant's",
    "entity_type": "the kind of thing that was acted on",
    "entity_id": "which one",
    "outcome": "e.g. success or denied",
    "request_id": "the request or trace",
    "old_values": "JSON object: the entity before",
    "new_values": "JSON object: the entity after",
    "metadata": "JSON object: everything else",
    "ip_address": "where the request came from",
    "user_agent": "with what it was made",
    "prev_hash": "reserved",
    "content_hash": "reserved",
}


def _create_table() -> str:
    lines = []
    for name, kind in _COLUMN_TYPES.items():
        comma = "," if name != COLUMNS[-1] else ""
        lines.append(f"    {name} {kind}{comma}  -- {_COMMENTS[name]}\n")
    return f"CREATE TABLE IF NOT EXISTS {TABLE} (\n{''.join(lines)}) WITHOUT ROWID"


CREATE_TABLE: Final = _create_table()

_OPTIONAL_FILTERS: Final = ("entity_id", "entity_type", "outcome", "request_id")

#: Index name to what it covers. Optional fields cost nothing where they are absent.
INDEXES: Final = {
    "audit_logs_time": f"{TABLE} (created_at, id)",
    "audit_logs_tenant_time": f"{TABLE} (tenant_id, created_at, id)",
    "audit_logs_tenant_action": f"{TABLE} (tenant_id, action, created_at, id)",
    "audit_logs_tenant_actor": f"{TABLE} (tenant_id, actor_id, created_at, id)",
    **{
        f"audit_logs_tenant_{name}": (
            f"{TABLE} (tenant_id, {name}, created_at, id) WHERE {name} IS NOT NULL"
        )
        for name in _OPTIONAL_FILTERS
    },
}

#: The index of a table that was made without a key.
UNIQUE_ID: Final = "audit_logs_id"

#: A statement of 500 rows runs for about 2 ms with the GIL released. More rows gain nothing.
#: Binding their values holds the GIL, and would delay callers.
MAX_ROWS_PER_STATEMENT: Final = 500

_encode = msgspec.json.Encoder().encode
_values = msgspec.structs.astuple

#: An event whose objects stay the JSON text that they are.
_Row: Final = msgspec.defstruct(
    "_Row",
    [
        (field.name, msgspec.Raw, msgspec.Raw())
        if field.name in OBJECT_FIELDS
        else (field.name, field.type, field.default)
        for field in msgspec.structs.fields(AuditEvent)
    ],
    gc=False,
)
_decode_row: Final[Any] = msgspec.json.Decoder(_Row).decode

#: The columns as SQL text.
NAMES: Final = ", ".join(COLUMNS)

#: A statement of many rows that had to be undone by itself would copy every page before it changes
#: it; that is 30 % of an insert. A batch with a bad row is rolled back whole in any case.
_INSERT: Final = f"INSERT OR ROLLBACK INTO {TABLE} ({NAMES})"
_MARKS: Final = "(" + ", ".join("?" * len(COLUMNS)) + ")"


def to_row(event: AuditEvent) -> tuple[str | None, ...]:
    """Return the column values of *event*; objects as JSON text."""
    old, new, metadata = event.old_values, event.new_values, event.metadata
    return (
        event.id,
        event.created_at,
        event.action,
        event.actor_id,
        event.tenant_id,
        event.entity_type,
        event.entity_id,
        event.outcome,
        event.request_id,
        None if old is None else _encode(old).decode(),
        None if new is None else _encode(new).decode(),
        None if metadata is None else _encode(metadata).decode(),
        event.ip_address,
        event.user_agent,
        event.prev_hash,
        event.content_hash,
    )


def values_of(events: Sequence[AuditEvent]) -> list[str | None]:
    """Return the column values of events, one row after the other."""
    return [value for event in events for value in to_row(event)]


def encoded_values(payloads: Sequence[bytes]) -> list[str | None]:
    """Return the column values of encoded events, one row after the other.

    Raises:
        RejectedEventsError: one is not an event.
    """
    values: list[str | None] = []
    for payload in payloads:
        try:
            row = _decode_row(payload)
        except msgspec.MsgspecError as error:
            raise RejectedEventsError(f"not an event: {error}") from error
        old, new, metadata = row.old_values, row.new_values, row.metadata
        row.old_values = str(old, "utf-8") if old else None
        row.new_values = str(new, "utf-8") if new else None
        row.metadata = str(metadata, "utf-8") if metadata else None
        values += _values(row)
    return values


def from_row(row: Sequence[Any]) -> AuditEvent:
    """Return the event of a row with :data:`COLUMNS` in order."""
    values: list[Any] = [
        decode_object(value) if name in OBJECT_FIELDS else value
        for name, value in zip(COLUMNS, row, strict=True)
    ]
    return AuditEvent(*values)


def insert_statement(rows: int) -> str:
    """Return the statement that inserts *rows* rows and leaves those alone that are there.

    ``ON CONFLICT(id)`` and not ``OR IGNORE``: that would hide rows that break other rules.
    """
    marks = ",".join([_MARKS] * rows)
    return f"{_INSERT} VALUES {marks} ON CONFLICT(id) DO NOTHING"


#: Inserts the rows of one parameter, a JSON array of arrays. Where parameters travel as JSON, this
#: is half the bytes and a tenth of the client's work of one parameter for each value.
INSERT_JSON: Final = (
    f"{_INSERT} SELECT "
    + ", ".join(f"json_extract(value, '$[{place}]')" for place in range(len(COLUMNS)))
    # Without WHERE, the parser would take ON for the beginning of a join's condition.
    + " FROM json_each(?) WHERE true ON CONFLICT(id) DO NOTHING"
)


def add_column(name: str) -> str:
    """Return the statement that adds a column which an older table lacks."""
    kind = _COLUMN_TYPES[name]
    default = " DEFAULT ''" if "NOT NULL" in kind else ""
    return f"ALTER TABLE {TABLE} ADD COLUMN {name} {kind.removesuffix(' PRIMARY KEY')}{default}"


def lacks_something(message: str) -> bool:
    """Tell whether an error's message says that the table, or a column of it, is missing."""
    return any(text in message for text in ("no such table", "no such column", "no column named"))


def unique_id() -> str:
    """Return the statement that makes ``id`` unique in a table that was made without a key."""
    return f"CREATE UNIQUE INDEX IF NOT EXISTS {UNIQUE_ID} ON {TABLE} (id)"


#: Writes a moment as the rows carry theirs.
time_text: Final = utc_text
