"""Reading events a page at a time: the queries of a trail, and the reader of one tenant.

A reader is bound to its scope when it is made. What it hands to the database is always that scope.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeAlias, TypeVar, Unpack

from logbun_logging._encoding.messages import shown
from logbun_logging._encoding.values import clean_tenant_id, plain_text
from logbun_logging.errors import QueryError
from logbun_logging.event import AuditEvent
from logbun_logging.query import (
    Filters,
    Page,
    Pagination,
    QueryFilters,
    TenantScope,
    clamp_limit,
    decode_cursor,
    encode_cursor,
    make_filters,
)

__all__ = ["Reader", "TenantReader"]

T = TypeVar("T")

#: Returns one page of a scope from its database.
Fetch: TypeAlias = Callable[[TenantScope, Filters, Pagination], list[AuditEvent]]


async def in_thread(call: Callable[..., T], /, *args: Any, **keywords: Any) -> T:
    """Call without blocking the event loop."""
    import asyncio  # noqa: PLC0415 - who is here has imported it; others need not pay for it

    return await asyncio.to_thread(call, *args, **keywords)


class Reader:
    """Reads the events of one scope; the methods of :class:`AuditTrail` have the arguments.

    Args:
        fetch: asks the database.
        scope: whose events, checked by the caller.
    """

    __slots__ = ("_fetch", "_scope")

    def __init__(self, fetch: Fetch, scope: TenantScope) -> None:
        self._fetch = fetch
        self._scope = scope

    def query(
        self, *, limit: int = 50, cursor: str | None = None, **filters: Unpack[QueryFilters]
    ) -> Page:
        """Return one page of events, newest first, as :meth:`AuditTrail.query` does.

        Raises:
            QueryError: an argument is wrong.
            NotReadyError: the database cannot be reached.
        """
        asked = make_filters(**filters)
        size = clamp_limit(limit)
        page = Pagination(limit=size + 1, after=decode_cursor(cursor))
        found = self._fetch(self._scope, asked, page)
        more = len(found) > size
        return Page(found[:size], encode_cursor(found[size - 1]) if more else None)

    def iter(
        self, *, limit: int = 500, cursor: str | None = None, **filters: Unpack[QueryFilters]
    ) -> Iterator[AuditEvent]:
        """Yield every matching event, newest first, as :meth:`AuditTrail.iter` does."""
        while True:
            page = self.query(limit=limit, cursor=cursor, **filters)
            yield from page.logs
            cursor = page.next_cursor
            if cursor is None:
                return

    async def aquery(
        self, *, limit: int = 50, cursor: str | None = None, **filters: Unpack[QueryFilters]
    ) -> Page:
        """Do what :meth:`query` does without blocking the event loop."""
        return await in_thread(self.query, limit=limit, cursor=cursor, **filters)

    async def aiter(
        self, *, limit: int = 500, cursor: str | None = None, **filters: Unpack[QueryFilters]
    ) -> AsyncIterator[AuditEvent]:
        """Do what :meth:`iter` does without blocking the event loop."""
        while True:
            page = await self.aquery(limit=limit, cursor=cursor, **filters)
            for event in page.logs:
                yield event
            cursor = page.next_cursor
            if cursor is None:
                return


class TenantReader(Reader):
    """Reads the events of one tenant and nothing else: to hand to that tenant's views.

    :meth:`AuditTrail.for_tenant` makes it. It has :meth:`query`, :meth:`iter` and their
    asynchronous twins, and no way to name another tenant, to change or to remove anything. A
    cursor that another tenant's query returned finds this tenant's events only.

    Raises:
        QueryError: *tenant_id* is not the id of one tenant.
    """

    __slots__ = ("_tenant_id",)

    def __init__(self, fetch: Fetch, tenant_id: str) -> None:
        if not isinstance(tenant_id, str) or not tenant_id:
            allowed = "the id of one tenant, a string that is not empty"
            raise QueryError(f"tenant_id={shown('tenant_id', tenant_id)}: allowed is {allowed}")
        self._tenant_id = clean_tenant_id(plain_text(tenant_id))
        super().__init__(fetch, self._tenant_id)

    def __repr__(self) -> str:
        return f"TenantReader(tenant_id={self._tenant_id!r})"

    @property
    def tenant_id(self) -> str:
        """The tenant's id, as its events carry it."""
        return self._tenant_id
