"""ClickHouse, as a server or embedded."""

from logbun_logging.adapters.clickhouse.adapter import ClickHouseAdapter

__all__ = ["ClickHouseAdapter"]
