"""Databases for audit events; importing this package imports no driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logbun_logging.adapters.base import (
    Adapter,
    Batch,
    BatchAdapter,
    EncodedAdapter,
    EncodedBatch,
    ForkAwareAdapter,
    PruneReport,
)
from logbun_logging.adapters.factory import CLASSES, create_adapter, load_adapter_class

if TYPE_CHECKING:
    from logbun_logging.adapters.clickhouse.adapter import ClickHouseAdapter
    from logbun_logging.adapters.sqlite.adapter import SQLiteAdapter
    from logbun_logging.adapters.turso.adapter import TursoAdapter

__all__ = [
    "Adapter",
    "Batch",
    "BatchAdapter",
    "ClickHouseAdapter",
    "EncodedAdapter",
    "EncodedBatch",
    "ForkAwareAdapter",
    "PruneReport",
    "SQLiteAdapter",
    "TursoAdapter",
    "create_adapter",
]


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return load_adapter_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
