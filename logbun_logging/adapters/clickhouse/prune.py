"""Retention on ClickHouse: whole months are dropped, single tenants' rows are deleted.

Dropping a partition costs the same whatever is in it, so a month goes as soon as every row of it
has expired, and not before: a tenant whose rows are kept longer keeps the month. Rows that expire
sooner than their month does are a tenant's own, and are deleted month by month; those of all others
wait for the month's end, or for the table's TTL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from logbun_logging.adapters.base import PruneReport
from logbun_logging.adapters.clickhouse.table import (
    Layout,
    is_month,
    month_end,
    tenant_key,
    tenant_of,
    to_micros,
)

__all__ = ["Pruning"]

_POSITION: Final = "indexOf({tenants:Array(String)}, tenant_id)"
_OF_TENANTS: Final = "tenant_id IN {tenants:Array(String)}"
_EXPIRED: Final = (
    f"toUnixTimestamp64Micro(created_at) < arrayElement({{limits:Array(Int64)}}, {_POSITION})"
)
_OF_OTHERS: Final = f"NOT {_OF_TENANTS}"


@dataclass(slots=True)
class _Month:
    """The rows of one month: all, and those of each tenant with days of its own, and expired."""

    rows: int
    tenants: dict[str | None, int]
    expired: dict[str | None, int]

    @property
    def others(self) -> int:
        return self.rows - sum(self.tenants.values())


class Pruning:
    """One run of retention over one table.

    Args:
        layout: the table.
        limit: rows of tenants without days of their own go before this; None: they stay.
        tenants: the same for each tenant that has days of its own.
        query: runs a statement with parameters and returns its rows.
        command: runs a statement with parameters.
    """

    def __init__(
        self,
        layout: Layout,
        limit: datetime | None,
        tenants: Mapping[str, datetime],
        *,
        query: Callable[[str, Mapping[str, Any]], Sequence[Sequence[Any]]],
        command: Callable[[str, Mapping[str, Any]], object],
    ) -> None:
        self._layout = layout
        self._limit = limit
        self._query = query
        self._command = command
        self._values: dict[str, Any] = {
            "tenants": [tenant_key(tenant) for tenant in tenants],
            "limits": [to_micros(moment) for moment in tenants.values()],
        }
        self._report: Counter[str | None] = Counter(dict.fromkeys(tenants, 0))
        if limit is not None:
            self._report[None] = 0

    def run(self, *, dry_run: bool) -> PruneReport:
        """Remove what has expired and return the number of rows, by tenant.

        The number has the copies in it that retries have left and that are not merged yet.
        """
        for name, month in sorted(self._months().items()):
            if self._limit is not None and month_end(name) <= self._limit:
                self._prune_expired_month(name, month, dry_run=dry_run)
            else:
                self._delete_tenants(name, month, dry_run=dry_run)
        return dict(self._report)

    def _months(self) -> dict[str, _Month]:
        table = self._layout.table
        months = {
            str(name): _Month(rows, {}, {})
            for name, rows in self._query(
                f"SELECT _partition_id, count() FROM {table} GROUP BY _partition_id", {}
            )
            if is_month(str(name))
        }
        if self._values["tenants"]:
            found = self._query(
                f"SELECT _partition_id, tenant_id, count(), countIf({_EXPIRED}) FROM {table} "
                f"WHERE {_OF_TENANTS} GROUP BY _partition_id, tenant_id",
                self._values,
            )
            for name, key, rows, expired in found:
                if str(name) in months:
                    months[str(name)].tenants[tenant_of(key)] = rows
                    months[str(name)].expired[tenant_of(key)] = expired
        return months

    def _prune_expired_month(self, name: str, month: _Month, *, dry_run: bool) -> None:
        """Drop a month that has expired by the general limit, unless a tenant has a longer one.

        A row of such a tenant that comes in between the count and the drop would go, too. It would
        have to be older than the general limit when it is inserted, and in that very moment.
        """
        if month.expired != month.tenants:
            self._delete_tenants(name, month, dry_run=dry_run)
            if month.others:
                self._report[None] += month.others
                if not dry_run:
                    self._command(self._layout.delete(name, _OF_OTHERS), self._values)
            return
        self._report.update(month.expired)
        self._report[None] += month.others
        if not dry_run:
            self._command(self._layout.drop_partition(name), {})

    def _delete_tenants(self, name: str, month: _Month, *, dry_run: bool) -> None:
        if any(month.expired.values()):
            self._report.update(month.expired)
            if not dry_run:
                where = f"{_OF_TENANTS} AND {_EXPIRED}"
                self._command(self._layout.delete(name, where), self._values)
