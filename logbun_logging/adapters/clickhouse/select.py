"""One page of events from ClickHouse: the statement that finds it, and its rows as events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from logbun_logging.adapters.clickhouse.table import (
    COLUMNS,
    EPOCH,
    Layout,
    tenant_key,
    tenant_of,
    to_micros,
)
from logbun_logging.errors import QueryError
from logbun_logging.event import OBJECT_FIELDS, AuditEvent, decode_object, utc_text
from logbun_logging.query import AllTenants, Filters, Pagination, TenantScope

__all__ = ["select_page"]

_NAMES: Final = ", ".join(
    f"toUnixTimestamp64Micro({name})" if name == "created_at" else name for name in COLUMNS
)
_ID: Final = COLUMNS.index("id")
_TIME: Final = COLUMNS.index("created_at")
_TENANT: Final = COLUMNS.index("tenant_id")


def _to_text(micros: int) -> str:
    return utc_text(EPOCH + timedelta(microseconds=micros))


def _from_row(row: Sequence[Any]) -> AuditEvent:
    values: list[Any] = [
        decode_object(value) if name in OBJECT_FIELDS else value
        for name, value in zip(COLUMNS, row, strict=True)
    ]
    values[_TIME] = _to_text(values[_TIME])
    values[_TENANT] = tenant_of(values[_TENANT])
    return AuditEvent(*values)


def select_page(
    run: Callable[[str, Mapping[str, Any]], Sequence[Sequence[Any]]],
    layout: Layout,
    tenant_id: TenantScope,
    filters: Filters,
    pagination: Pagination,
) -> list[AuditEvent]:
    """Run the statement for one page through *run*, and return its events, each once.

    Copies of a row that are not merged yet follow on each other. To leave them out here costs
    nothing; ``FINAL`` and ``LIMIT 1 BY`` cost up to twenty times the query, because they end the
    reading in order. The rare page that copies have made short is filled by another query.
    """
    where, values = _conditions(tenant_id, filters)
    events: list[AuditEvent] = []
    place = None if pagination.after is None else _place(pagination.after)
    while True:
        wanted = pagination.limit - len(events)
        conditions = [*where]
        if place is not None:
            # The first part, though implied, is what the sorting key can be searched by.
            before = "fromUnixTimestamp64Micro({after_time:Int64}, 'UTC')"
            conditions.append(f"created_at <= {before}")
            conditions.append(f"(created_at < {before} OR id < {{after_id:String}})")
            values["after_time"], values["after_id"] = place
        condition = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = run(
            f"SELECT {_NAMES} FROM {layout.table}{condition} "
            f"ORDER BY created_at DESC, id DESC LIMIT {wanted:d}",
            values,
        )
        for row in rows:
            if (row[_TIME], row[_ID]) != place:
                place = (row[_TIME], row[_ID])
                events.append(_from_row(row))
        if len(rows) < wanted or len(events) >= pagination.limit:
            return events


def _place(cursor: tuple[str, str]) -> tuple[int, str]:
    try:
        return to_micros(cursor[0]), cursor[1]
    except ValueError as error:
        raise QueryError(f"cursor: allowed is a next_cursor of this trail ({error})") from error


def _conditions(tenant_id: TenantScope, filters: Filters) -> tuple[list[str], dict[str, Any]]:
    where: list[str] = []
    values: dict[str, Any] = {}
    if not isinstance(tenant_id, AllTenants):
        where.append("tenant_id = {tenant_id:String}")
        values["tenant_id"] = tenant_key(tenant_id)
    for name, value in filters.equal:
        where.append(f"{name} = {{{name}:String}}")
        values[name] = value
    for bound, moment, sign in (("start", filters.start, ">="), ("end", filters.end, "<=")):
        if moment is not None:
            where.append(f"created_at {sign} fromUnixTimestamp64Micro({{{bound}:Int64}}, 'UTC')")
            values[bound] = to_micros(moment)
    actions = []
    if filters.actions:
        actions.append("action IN {actions:Array(String)}")
        values["actions"] = list(filters.actions)
    for number, prefix in enumerate(filters.action_prefixes):
        actions.append(f"startsWith(action, {{prefix_{number}:String}})")
        values[f"prefix_{number}"] = prefix
    if actions:
        where.append(f"({' OR '.join(actions)})")
    return where, values
