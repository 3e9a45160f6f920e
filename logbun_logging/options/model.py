"""What the engine reads: the options as frozen objects, with their defaults and bounds.

Only ``parsing`` makes a :class:`TrailOptions` of what a user wrote, so the engine never meets an
option that was not checked. The meaning of each option stands in ``keywords``. Bounds stand beside
the field, as :class:`msgspec.Meta`; ``checks`` makes the message from them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from logbun_logging._encoding.messages import shown
from logbun_logging._encoding.redaction import DEFAULT_RULES, Redactor
from logbun_logging._encoding.unknown_fields import UnknownFieldsMode
from logbun_logging.errors import ConfigurationError
from logbun_logging.options.keywords import (
    EventCallback,
    FsyncPolicy,
    FullPolicy,
    Mode,
    TenancyMode,
)

__all__ = [
    "BatchingOptions",
    "Days",
    "DlqOptions",
    "LimitOptions",
    "PoolOptions",
    "RetentionOptions",
    "RetryOptions",
    "TenancyOptions",
    "TrailOptions",
    "WalOptions",
]

_MIB = 1024 * 1024

#: How long events are kept.
Days = Annotated[int, Meta(ge=1, le=36_500)]

Namespace = Annotated[
    str,
    Meta(pattern=r"[A-Za-z0-9_-]{1,64}", description="1 to 64 characters of A-Z a-z 0-9 _ -"),
]


class BatchingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """When a batch is due, and how many events may wait."""

    max_size: Annotated[int, Meta(ge=1, le=10_000)] = 100
    flush_interval: Annotated[float, Meta(ge=0.01, le=3600.0)] = 5.0
    max_queue_size: Annotated[int, Meta(ge=1, le=10_000_000)] = 1000
    on_queue_full: FullPolicy = "dlq"
    block_timeout: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0


class RetryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a failed insert is tried again."""

    max_retries: Annotated[int, Meta(ge=0, le=100)] = 3
    base_delay: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    scan_interval: Annotated[float, Meta(ge=0.05, le=86_400.0)] = 60.0
    first_scan: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 10.0
    max_scan_attempts: Annotated[int, Meta(ge=1, le=1_000_000)] = 10


class TenancyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One database for all tenants, or one for each."""

    mode: TenancyMode = "single_database"
    resolve_connection: Callable[[str], Any | Awaitable[Any]] | None = None


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant databases that are open at a time."""

    max_active_connections: Annotated[int, Meta(ge=1, le=100_000)] = 50
    idle_timeout: Annotated[float, Meta(ge=0.1, le=86_400.0)] = 300.0


class RetentionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is pruned, and when."""

    days: Days | None = None
    cron: str = "0 0 * * *"
    tenants: Mapping[str, Days] = msgspec.field(default_factory=dict)
    timeout: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 600.0

    def check_ttl(self, ttl: int | None) -> None:
        """Check that a database whose own retention is *ttl* days keeps everything long enough.

        Raises:
            ConfigurationError: it would remove events before their time.
        """
        longest = max([self.days or 0, *self.tenants.values()])
        if ttl is not None and ttl < longest:
            allowed = (
                f"{longest} or more, the longest of retention.days and retention.tenants: "
                "the database itself removes the rows of all tenants after so many days"
            )
            raise ConfigurationError("adapter.retention_days", ttl, allowed)


class LimitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of memory and of single events."""

    max_total_queued: Annotated[int, Meta(ge=1, le=100_000_000)] = 50_000
    max_queued_bytes: Annotated[int, Meta(ge=100_000, le=2**40)] = 64 * _MIB
    max_string_bytes: Annotated[int, Meta(ge=256, le=64_000)] = 2_048
    max_payload_bytes: Annotated[int, Meta(ge=4_096, le=16_000_000)] = 64_000


class WalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The write-ahead log."""

    segment_bytes: Annotated[int, Meta(ge=4_096, le=2**32)] = 8 * _MIB
    sync_interval: Annotated[float, Meta(ge=0.01, le=60.0)] = 1.0
    max_bytes: Annotated[int, Meta(ge=4_096, le=2**50)] | None = 4096 * _MIB


class DlqOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of the dead-letter queue. If one is reached, nothing more is written to it."""

    max_files: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    max_bytes: Annotated[int, Meta(ge=100_000, le=2**50)] = 1024 * _MIB


class TrailOptions(msgspec.Struct, frozen=True, kw_only=True):
    """All options of one trail."""

    namespace: Namespace
    adapter: Any
    # Absolute from the start: a daemon that changes its directory must not move its log.
    data_dir: Path = msgspec.field(default_factory=lambda: Path(".logbun").absolute())
    mode: Mode = "volatile"
    fsync: FsyncPolicy = "interval"
    batching: BatchingOptions = BatchingOptions()
    retry: RetryOptions = RetryOptions()
    tenancy: TenancyOptions = TenancyOptions()
    pool: PoolOptions = PoolOptions()
    retention: RetentionOptions = RetentionOptions()
    require_tenant_id: bool = False
    limits: LimitOptions = LimitOptions()
    wal: WalOptions = WalOptions()
    dlq: DlqOptions = DlqOptions()
    insert_timeout: Annotated[float, Meta(ge=0.05, le=3600.0)] = 30.0
    flush_timeout: Annotated[float, Meta(ge=0.05, le=3600.0)] = 30.0
    redact: Redactor | None = Redactor(DEFAULT_RULES)
    unknown_fields: UnknownFieldsMode = "warn"
    on_event: EventCallback | None = None

    def __repr__(self) -> str:
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        given["adapter"] = shown("adapter", self.adapter)
        return f"TrailOptions({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    @property
    def folder(self) -> Path:
        """The folder of the namespace's files."""
        return self.data_dir / self.namespace
