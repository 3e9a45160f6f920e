"""One page of events from SQLite or libSQL: the statements that find it.

Each filter of one tenant has an index that leads with the tenant and ends in the time. The
statements are written so that the planner, which has no statistics, takes that index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from logbun_logging.adapters._sql.table import NAMES, TABLE, from_row
from logbun_logging.event import AuditEvent
from logbun_logging.query import AllTenants, Filters, Pagination, TenantScope

__all__ = ["select_page"]

#: A prefix that stands for more actions than this is looked up by time instead of by action.
_MAX_ACTIONS: Final = 50


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
    return f"SELECT {NAMES} FROM {TABLE}{condition} ORDER BY created_at DESC, id DESC LIMIT ?"


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

    If no text is greater, return an empty blob: SQLite sorts every blob after every text.
    """
    for end in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[end]) + 1
        point = 0xE000 if 0xD800 <= point < 0xE000 else point  # surrogates are not characters
        if point <= 0x10FFFF:
            return prefix[:end] + chr(point)
    return b""
