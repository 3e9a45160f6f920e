"""The commands that talk to a database: ``query``, ``tail`` and ``prune``."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer
from msgspec.structs import replace

from logbun_logging._encoding.values import clean_tenant_id
from logbun_logging.adapters.base import Adapter, FileAdapter, PruneReport
from logbun_logging.adapters.factory import create_adapter
from logbun_logging.cli.commands import Command, Raw, Yes
from logbun_logging.cli.output import (
    Format,
    LineFormat,
    confirm,
    counted,
    friendly,
    require_terminal,
    show_events,
    show_line,
    show_table,
    warn,
)
from logbun_logging.errors import AdapterUnavailableError, ConfigurationError, QueryError
from logbun_logging.event import AuditEvent, utc_timestamp
from logbun_logging.query import (
    ALL_TENANTS,
    MAX_LIMIT,
    Cursor,
    Filters,
    Pagination,
    TenantScope,
    decode_cursor,
    encode_cursor,
    make_filters,
    read_time,
)

__all__ = ["Url", "open_database", "register"]

Url = Annotated[
    str,
    typer.Argument(
        envvar="LOGBUN_URL",
        help="The database's URL: sqlite:///audit.db, libsql://..., clickhouse://...",
    ),
]
Tenant = Annotated[
    str | None,
    typer.Option("--tenant", "-t", help="Whose events. By default: those of no tenant."),
]
AllTenants = Annotated[bool, typer.Option("--all-tenants", help="Events of every tenant.")]
Action = Annotated[
    list[str] | None,
    typer.Option("--action", "-a", help="An action, or a prefix like 'course.*'. May be repeated."),
]
Actor = Annotated[str | None, typer.Option("--actor", help="Only this actor_id.")]
EntityType = Annotated[str | None, typer.Option("--entity-type", help="Only this entity_type.")]
EntityId = Annotated[str | None, typer.Option("--entity-id", help="Only this entity_id.")]
Outcome = Annotated[str | None, typer.Option("--outcome", help="Only this outcome.")]
RequestId = Annotated[str | None, typer.Option("--request-id", help="Only this request_id.")]
Since = Annotated[
    str | None,
    typer.Option("--since", "-s", help="Not before: ISO 8601, or back from now: 90m, 24h, 7d."),
]
Until = Annotated[str | None, typer.Option("--until", "-u", help="Not after, in the same forms.")]

#: How far ``tail`` looks back each time, in seconds: batches of several tenants, and of several
#: processes, do not arrive in the order of their events.
_LOOK_BACK: Final = 60

_SPAN: Final = re.compile(r"(\d{1,9})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (query, tail, prune):
        app.command(cls=Command)(command)


@dataclass(frozen=True, slots=True)
class _Search:
    adapter: Adapter
    scope: TenantScope
    filters: Filters

    def newest(self, limit: int, after: Cursor | None = None) -> Iterator[AuditEvent]:
        """Yield up to *limit* events (0: all), newest first, a page at a time."""
        left = limit or None
        while left is None or left > 0:
            size = MAX_LIMIT if left is None else min(left, MAX_LIMIT)
            found = self.adapter.query(
                self.scope, self.filters, Pagination(limit=size, after=after)
            )
            yield from found
            if len(found) < size:
                return
            after = (found[-1].created_at, found[-1].id)
            left = None if left is None else left - len(found)


@contextmanager
def open_database(url: str) -> Iterator[Adapter]:
    """Open the database that *url* names, which must be there.

    Raises:
        ConfigurationError: the URL is wrong.
        AdapterUnavailableError: it cannot be opened.
    """
    adapter = create_adapter(url, "URL")
    try:
        if isinstance(adapter, FileAdapter) and not adapter.exists():
            raise AdapterUnavailableError(f"there is no such database: {adapter!r}")
        adapter.init()
        yield adapter
    finally:
        adapter.close()


@friendly
def query(
    url: Url,
    *,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    action: Action = None,
    actor: Actor = None,
    entity_type: EntityType = None,
    entity_id: EntityId = None,
    outcome: Outcome = None,
    request_id: RequestId = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="How many; 0 for all.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Continue after this page.")] = None,
    form: Annotated[Format, typer.Option("--format", "-f")] = Format.TABLE,
    raw: Raw = False,
) -> None:
    """Show events, newest first."""
    filters = make_filters(
        action=action or None,
        start_date=_moment("--since", since),
        end_date=_moment("--until", until),
        actor_id=actor,
        entity_type=entity_type,
        entity_id=entity_id,
        outcome=outcome,
        request_id=request_id,
    )
    scope = _scope(tenant, all_tenants=all_tenants)
    after = decode_cursor(cursor)
    last: list[AuditEvent] = []

    def noted(events: Iterator[AuditEvent]) -> Iterator[AuditEvent]:
        for event in events:
            last[:] = [event]
            yield event

    with open_database(url) as adapter:
        count = show_events(
            noted(_Search(adapter, scope, filters).newest(limit, after)), form, raw=raw
        )
    if not count:
        warn("no events" + ("" if scope else "; without --tenant, events of no tenant are shown"))
    elif limit and count == limit and form is Format.TABLE:
        warn(f"{counted(count, 'event')}; for more: --cursor {encode_cursor(last[0])}")


@friendly
def tail(
    url: Url,
    *,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    action: Action = None,
    actor: Actor = None,
    entity_type: EntityType = None,
    entity_id: EntityId = None,
    outcome: Outcome = None,
    request_id: RequestId = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Older events at first.")] = 10,
    follow: Annotated[bool, typer.Option(help="Keep showing new events until interrupted.")] = True,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two queries.")] = 1.0,
    form: Annotated[LineFormat, typer.Option("--format", "-f")] = LineFormat.TEXT,
) -> None:
    """Show the newest events, oldest first, and then new ones as they arrive.

    Events that reach the database more than a minute late are not shown: use query for those.
    """
    filters = make_filters(
        action=action or None,
        actor_id=actor,
        entity_type=entity_type,
        entity_id=entity_id,
        outcome=outcome,
        request_id=request_id,
    )
    scope = _scope(tenant, all_tenants=all_tenants)
    with open_database(url) as adapter:

        def recent(start: str) -> Iterator[AuditEvent]:
            return _Search(adapter, scope, replace(filters, start=start)).newest(0)

        start = _look_back()
        seen = {event.id for event in recent(start)}
        found = list(_Search(adapter, scope, filters).newest(lines))[::-1] if lines else []
        _show_lines(found, form)
        seen.update(event.id for event in found)
        while follow:
            time.sleep(interval)
            before, start = start, _look_back()
            unseen, seen = _unseen(recent(before), seen)
            _show_lines(unseen, form)


def _unseen(
    events: Iterator[AuditEvent], seen: Collection[str]
) -> tuple[list[AuditEvent], set[str]]:
    """Return those of *events* (newest first) that are new, oldest first, and the ids of all."""
    unseen: list[AuditEvent] = []
    ids: set[str] = set()
    for event in events:
        ids.add(event.id)
        if event.id not in seen:
            unseen.append(event)
    return unseen[::-1], ids


def _look_back() -> str:
    return utc_timestamp(time.time() - _LOOK_BACK)


def _show_lines(events: list[AuditEvent], form: LineFormat) -> None:
    if form is LineFormat.NDJSON:
        show_events(events, Format.NDJSON)
        return
    for event in events:
        who = f"{event.tenant_id or '-'} {event.actor_id}"
        what = " ".join(filter(None, (event.entity_type, event.entity_id, event.outcome)))
        show_line(f"{event.created_at} {who} {event.action} {what}".rstrip())


@friendly
def prune(
    url: Url,
    *,
    days: Annotated[
        int | None, typer.Option(min=1, help="Remove events older than this many days.")
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(
            "--tenant", "-t", help="Other days for one tenant: TENANT=DAYS. May be repeated."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and remove nothing.")] = False,
    yes: Yes = False,
) -> None:
    """Remove old events for good. Counts them and asks first."""
    tenants = dict(_tenant_days(item) for item in tenant or ())
    if days is None and not tenants:
        raise ConfigurationError("--days", None, "a number of days, or --tenant TENANT=DAYS")
    ask = not (yes or dry_run)
    if ask:
        require_terminal()
    with open_database(url) as adapter:
        if not yes or dry_run:
            report = adapter.prune(days, tenants=tenants, dry_run=True)
            _show_pruned(report, "would be removed")
            if ask:
                confirm(f"Remove {counted(sum(report.values()), 'event')} for good?")
        if not dry_run:
            _show_pruned(adapter.prune(days, tenants=tenants), "removed")


def _show_pruned(report: PruneReport, title: str) -> None:
    rows = [("all others" if name is None else name, count) for name, count in report.items()]
    show_table(["tenant", title], rows)


def _tenant_days(item: str) -> tuple[str, int]:
    name, found, number = item.rpartition("=")
    if not (found and name and number.isdecimal() and int(number) > 0):
        raise ConfigurationError("--tenant", item, "TENANT=DAYS, e.g. tenant_123=30")
    return clean_tenant_id(name), int(number)


def _scope(tenant: str | None, *, all_tenants: bool) -> TenantScope:
    if all_tenants:
        if tenant is not None:
            raise QueryError("--tenant and --all-tenants: give one of them")
        return ALL_TENANTS
    if tenant == "":
        raise QueryError("--tenant='': allowed is a tenant, or no --tenant for those of none")
    return None if tenant is None else clean_tenant_id(tenant)


def _moment(option: str, text: str | None) -> str | None:
    try:
        if text is not None and (span := _SPAN.fullmatch(text)) is not None:
            ago = timedelta(**{_UNITS[span[2]]: int(span[1])})
            return read_time(option, datetime.now(UTC) - ago)
        return read_time(option, text)
    except (QueryError, OverflowError):
        allowed = "a time in ISO 8601, e.g. 2026-01-31T12:00Z, or back from now: 90m, 24h, 7d"
        raise QueryError(f"{option}={text!r}: allowed is {allowed}") from None
