"""The ``audit_logs`` table as SQLite and libSQL know it: DDL, rows, and SELECT statements.

The table is WITHOUT ROWID: it is clustered by the UUIDv7 ``id``, so inserts append, and every index
ends in ``id`` by itself, which is the order that pages are read in. Each filter of one tenant has
an index that leads with the tenant and ends in the time, so a page costs the same wherever it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from logbun_logging.errors import RejectedEventsError
from logbun_logging.event import FIELDS, AuditEvent, decode_object
from logbun_logging.query import AllTenants, Filters, Pagination, TenantScope

__all__ = [
    "COLUMNS",
    "CREATE_TABLE",
    "INDEXES",
    "INSERT_JSON",
    "MAX_ROWS_PER_STATEMENT",
    "TABLE",
    "UNIQUE_ID",
    "add_column",
    "count_rows",
    "delete_expired",
    "delete_rows",
    "encoded_values",
    "expired_rows",
    "from_row",
    "insert_statement",
    "lacks_something",
    "not_tenants",
    "select_page",
    "time_text",
    "to_row",
    "unique_id",
    "values_of",
]

TABLE: Final = "audit_logs"
COLUMNS: Final = FIELDS

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

#: One statement of so many rows keeps the GIL released for about 2 ms; more gains nothing, and the
#: binding of its values (under the GIL) would be felt by callers.
MAX_ROWS_PER_STATEMENT: Final = 500

_JSON_COLUMNS: Final = frozenset({"old_values", "new_values", "metadata"})
_encode = msgspec.json.Encoder().encode
_values = msgspec.structs.astuple

#: An event whose objects stay the JSON text that they are.
_Row: Final = msgspec.defstruct(
    "_Row",
    [
        (field.name, msgspec.Raw, msgspec.Raw())
        if field.name in _JSON_COLUMNS
        else (field.name, field.type, field.default)
        for field in msgspec.structs.fields(AuditEvent)
    ],
    gc=False,
)
_decode_row: Final[Any] = msgspec.json.Decoder(_Row).decode
_NAMES: Final = ", ".join(COLUMNS)

#: A statement of many rows that had to be undone by itself would copy every page before it changes
#: it; that is 30 % of an insert. A batch with a bad row is rolled back whole in any case.
_INSERT: Final = f"INSERT OR ROLLBACK INTO {TABLE} ({_NAMES})"
_MARKS: Final = "(" + ", ".join("?" * len(COLUMNS)) + ")"

#: A prefix that stands for more actions than this is looked up by time instead of by action.
_MAX_ACTIONS: Final = 50


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
        decode_object(value) if name in _JSON_COLUMNS else value
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


def time_text(moment: datetime) -> str:
    """Return a UTC moment as the rows carry theirs."""
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def not_tenants(tenants: Sequence[str]) -> str:
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


def select_page(
    run: Callable[[str, Sequence[Any]], Iterable[Sequence[Any]]],
    tenant_id: TenantScope,
    filters: Filters,
    pagination: Pagination,
) -> list[AuditEvent]:
    """Run the statements for one page through *run* and return its events."""
    where, values = _conditions(tenant_id, filters, pagination)
    actions = _actions(run, tenant_id, filters)
    if actions is None:
        extra, more = _action_condition(filters)
        statement, parameters = _ordered(where + extra), [*values, *more]
    elif not actions:
        return []
    elif len(actions) == 1:
        statement, parameters = _ordered([*where, "action = ?"]), [*values, actions[0]]
    else:
        # One ordered run for each action, merged: an IN list would sort every match.
        part = f"SELECT * FROM ({_ordered([*where, 'action = ?'])})"
        statement = " UNION ALL ".join([part] * len(actions))
        parameters = [v for action in actions for v in (*values, action, pagination.limit)]
        statement = f"SELECT * FROM ({statement}) ORDER BY created_at DESC, id DESC LIMIT ?"
    return [from_row(row) for row in run(statement, [*parameters, pagination.limit])]


def _ordered(where: Sequence[str]) -> str:
    condition = f" WHERE {' AND '.join(where)}" if where else ""
    return f"SELECT {_NAMES} FROM {TABLE}{condition} ORDER BY created_at DESC, id DESC LIMIT ?"


def _tenant_condition(tenant_id: TenantScope) -> tuple[list[str], list[Any]]:
    if isinstance(tenant_id, AllTenants):
        return [], []
    if tenant_id is None:
        return ["tenant_id IS NULL"], []
    return ["tenant_id = ?"], [tenant_id]


def _conditions(
    tenant_id: TenantScope, filters: Filters, pagination: Pagination
) -> tuple[list[str], list[Any]]:
    where, values = _tenant_condition(tenant_id)
    leading = _most_selective(filters)
    for name, value in filters.equal:
        # The unary plus keeps the planner, which has no statistics, off the other indexes.
        where.append(f"{'' if name == leading else '+'}{name} = ?")
        values.append(value)
    if filters.start is not None:
        where.append("created_at >= ?")
        values.append(filters.start)
    if filters.end is not None:
        where.append("created_at <= ?")
        values.append(filters.end)
    if pagination.after is not None:
        where.append("(created_at, id) < (?, ?)")
        values.extend(pagination.after)
    return where, values


def _most_selective(filters: Filters) -> str | None:
    """Return the filtered field whose index is likely to find the fewest rows."""
    names = {name for name, _ in filters.equal}
    order = ("request_id", "entity_id", "actor_id", "entity_type", "outcome")
    return next((name for name in order if name in names), None)


def _actions(
    run: Callable[[str, Sequence[Any]], Iterable[Sequence[Any]]],
    tenant_id: TenantScope,
    filters: Filters,
) -> list[str] | None:
    """Return the actions to look up one by one; None if that would not pay."""
    if not filters.actions and not filters.action_prefixes:
        return None
    if isinstance(tenant_id, AllTenants) or _most_selective(filters) is not None:
        return None  # no index leads with the action alone; others find fewer rows
    actions = dict.fromkeys(filters.actions)
    for prefix in filters.action_prefixes:
        actions.update(dict.fromkeys(_actions_below(run, tenant_id, prefix)))
        if len(actions) > _MAX_ACTIONS:
            return None
    return list(actions) if len(actions) <= _MAX_ACTIONS else None


def _actions_below(
    run: Callable[[str, Sequence[Any]], Iterable[Sequence[Any]]],
    tenant_id: TenantScope,
    prefix: str,
) -> list[str]:
    """Return a tenant's distinct actions with *prefix* by hopping through the index.

    One look-up for each action found, however many events there are: a loose index scan.
    """
    (tenant,), values = _tenant_condition(tenant_id)
    least = f"SELECT min(action) FROM {TABLE} WHERE {tenant} AND action"
    statement = (
        f"WITH RECURSIVE found(action) AS ({least} >= ? AND action < ? UNION ALL "
        f"SELECT ({least} > found.action AND action < ?) FROM found WHERE action IS NOT NULL) "
        "SELECT action FROM found WHERE action IS NOT NULL LIMIT ?"
    )
    end = _after_prefix(prefix)
    parameters = [*values, prefix, end, *values, end, _MAX_ACTIONS + 1]
    return [row[0] for row in run(statement, parameters)]


def _action_condition(filters: Filters) -> tuple[list[str], list[str | bytes]]:
    parts: list[str] = []
    values: list[str | bytes] = []
    if filters.actions:
        # The unary plus keeps the planner on the index by time, which ends at the first full page.
        parts.append("+action IN (" + ", ".join("?" * len(filters.actions)) + ")")
        values.extend(filters.actions)
    for prefix in filters.action_prefixes:
        parts.append("(+action >= ? AND +action < ?)")
        values.extend((prefix, _after_prefix(prefix)))
    return ["(" + " OR ".join(parts) + ")"] if parts else [], values


def _after_prefix(prefix: str) -> str | bytes:
    """Return the smallest text that is greater than all with *prefix* (in order of code points).

    Where there is none, it is an empty blob: SQLite sorts every blob after every text.
    """
    for end in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[end]) + 1
        point = 0xE000 if 0xD800 <= point < 0xE000 else point  # surrogates are not characters
        if point <= 0x10FFFF:
            return prefix[:end] + chr(point)
    return b""
