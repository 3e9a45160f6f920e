"""The options of a trail: typed, with their defaults, checked once at the border.

Everything that comes from a user (keyword arguments, ``dictConfig``, JSON, YAML) passes through
:func:`parse_options` and leaves as frozen objects. Inside, no dictionary of options is passed on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import msgspec

from logbun_logging._encoding.messages import shown
from logbun_logging._encoding.redaction import DEFAULT_RULES, Redactor
from logbun_logging._encoding.unknown_fields import UnknownFieldsMode
from logbun_logging._encoding.values import clean_tenant_id, plain_text
from logbun_logging.errors import ConfigurationError

__all__ = [
    "BatchingOptions",
    "DlqOptions",
    "EventCallback",
    "FsyncPolicy",
    "FullPolicy",
    "LimitOptions",
    "Mode",
    "PoolOptions",
    "RetentionOptions",
    "RetryOptions",
    "TenancyMode",
    "TenancyOptions",
    "TrailOptions",
    "WalOptions",
    "parse_encoding",
    "parse_options",
]

Mode = Literal["volatile", "durable"]
FsyncPolicy = Literal["always", "interval", "never"]
FullPolicy = Literal["dlq", "drop", "block"]
TenancyMode = Literal["single_database", "database_per_tenant"]


class EventCallback(Protocol):
    """What ``on_event`` is called with: the name of what happened, and its details.

    It runs on the pipeline's threads; what it raises is logged and otherwise ignored.
    """

    def __call__(self, name: str, details: Mapping[str, Any], /) -> object:  # noqa: D102
        ...


class BatchingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """When a batch is due, and how many events may wait.

    Attributes:
        max_size: events of one tenant that make a batch.
        flush_interval: seconds after which an incomplete batch is due.
        max_queue_size: events of one tenant that may wait while the database does not keep up.
        on_queue_full: ``"dlq"`` spills them to disk, ``"drop"`` drops and counts them (volatile
            mode only), ``"block"`` lets the caller wait up to ``block_timeout`` and then spills.
        block_timeout: seconds that a caller waits under ``"block"``.
    """

    max_size: int = 100
    flush_interval: float = 5.0
    max_queue_size: int = 1000
    on_queue_full: FullPolicy = "dlq"
    block_timeout: float = 1.0


class RetryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a failed insert is tried again.

    Attributes:
        max_retries: tries after the first one, before a batch goes to the DLQ.
        base_delay: seconds before the first retry; doubles with each one.
        scan_interval: seconds between DLQ scans.
        first_scan: seconds from the start to the first DLQ scan.
        max_scan_attempts: failed scans after which a DLQ file is ``.dead``.
    """

    max_retries: int = 3
    base_delay: float = 1.0
    scan_interval: float = 60.0
    first_scan: float = 10.0
    max_scan_attempts: int = 10


class TenancyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One database for all tenants, or one for each.

    Attributes:
        mode: ``"single_database"`` or ``"database_per_tenant"``.
        resolve_connection: for ``"database_per_tenant"``: given a tenant id, returns that tenant's
            adapter (URL, mapping or instance); may be a coroutine function.
    """

    mode: TenancyMode = "single_database"
    resolve_connection: Callable[[str], Any | Awaitable[Any]] | None = None


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant databases that are open at a time.

    Attributes:
        max_active_connections: the least recently used one is closed beyond this.
        idle_timeout: seconds after which an unused one is closed.
    """

    max_active_connections: int = 50
    idle_timeout: float = 300.0


class RetentionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is pruned, and when.

    Attributes:
        days: events older than this are pruned; None keeps them.
        cron: five-field cron expression, in UTC.
        tenants: days for single tenants.
        timeout: seconds for one database.
    """

    days: int | None = None
    cron: str = "0 0 * * *"
    tenants: Mapping[str, int] = msgspec.field(default_factory=dict)
    timeout: float = 600.0

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
    """Bounds of memory and of single events.

    Attributes:
        max_total_queued: events of all tenants in memory, in-flight batches included.
        max_queued_bytes: bytes of the same.
        max_string_bytes: longer strings are cut at a character and marked.
        max_payload_bytes: larger events have their largest objects cut and marked.
    """

    max_total_queued: int = 50_000
    max_queued_bytes: int = 64 * 1024 * 1024
    max_string_bytes: int = 2_048
    max_payload_bytes: int = 64_000


class WalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The write-ahead log.

    Attributes:
        segment_bytes: size at which a segment is sealed.
        sync_interval: seconds between syncs under ``fsync="interval"``.
        max_bytes: bytes in the files of one process, about; beyond that events stay in memory, as
            when the disk is full. None sets no bound.
    """

    segment_bytes: int = 8 * 1024 * 1024
    sync_interval: float = 1.0
    max_bytes: int | None = 4 * 1024 * 1024 * 1024


class DlqOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The dead-letter queue's bounds: reached, nothing more is spilled.

    Attributes:
        max_files: files in all states.
        max_bytes: bytes in all states.
    """

    max_files: int = 10_000
    max_bytes: int = 1024 * 1024 * 1024


class TrailOptions(msgspec.Struct, frozen=True, kw_only=True):
    """All options of one trail; see the fields' own classes."""

    namespace: str
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
    insert_timeout: float = 30.0
    flush_timeout: float = 30.0
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


_GROUPS: dict[str, type[Any]] = {
    "batching": BatchingOptions,
    "retry": RetryOptions,
    "tenancy": TenancyOptions,
    "pool": PoolOptions,
    "retention": RetentionOptions,
    "limits": LimitOptions,
    "wal": WalOptions,
    "dlq": DlqOptions,
}

#: Smallest and largest allowed number for every numeric option; whole numbers have int bounds.
_RANGES: dict[str, tuple[float, float]] = {
    "batching.max_size": (1, 10_000),
    "batching.flush_interval": (0.01, 3600.0),
    "batching.max_queue_size": (1, 10_000_000),
    "batching.block_timeout": (0.0, 3600.0),
    "retry.max_retries": (0, 100),
    "retry.base_delay": (0.0, 3600.0),
    "retry.scan_interval": (0.05, 86_400.0),
    "retry.first_scan": (0.0, 86_400.0),
    "retry.max_scan_attempts": (1, 1_000_000),
    "pool.max_active_connections": (1, 100_000),
    "pool.idle_timeout": (0.1, 86_400.0),
    "retention.days": (1, 36_500),
    "retention.timeout": (1.0, 86_400.0),
    "limits.max_total_queued": (1, 100_000_000),
    "limits.max_queued_bytes": (100_000, 2**40),
    "limits.max_string_bytes": (256, 64_000),
    "limits.max_payload_bytes": (4_096, 16_000_000),
    "wal.segment_bytes": (4_096, 2**32),
    "wal.sync_interval": (0.01, 60.0),
    "wal.max_bytes": (4_096, 2**50),
    "dlq.max_files": (1, 10_000_000),
    "dlq.max_bytes": (100_000, 2**50),
    "insert_timeout": (0.05, 3600.0),
    "flush_timeout": (0.05, 3600.0),
}

#: Numbers that may be None: there is no bound then.
_OPTIONAL = {"retention.days", "wal.max_bytes"}

_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "fsync": get_args(FsyncPolicy),
    "batching.on_queue_full": get_args(FullPolicy),
    "tenancy.mode": get_args(TenancyMode),
    "unknown_fields": get_args(UnknownFieldsMode),
}

_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def parse_options(given: Mapping[str, Any]) -> TrailOptions:
    """Check what a user gave and fill in the defaults.

    Raises:
        ConfigurationError: an option is unknown, missing, or has a value that is not allowed; the
            message names the option, the value and what is allowed.
    """
    values = {
        name: given[name] for name in given
    }  # indexing resolves dictConfig's cfg:// and ext://
    _refuse_unknown("", values, TrailOptions)
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        group = _GROUPS.get(name)
        parsed[name] = _value(name, value) if group is None else _group(name, value, group)
    for name in ("namespace", "adapter"):
        if parsed.get(name) is None and not (name == "adapter" and _per_tenant(parsed)):
            raise ConfigurationError.missing(name, _HINTS[name])
    parsed.setdefault("adapter", None)
    if _per_tenant(parsed):
        parsed.setdefault("require_tenant_id", True)
    options = TrailOptions(**parsed)
    _check_together(options, parsed)
    _check_use(options, values)
    return options


def parse_encoding(redact: Any, limits: Any) -> tuple[LimitOptions, Redactor | None]:
    """Check the two options that say how events are encoded, where there is no trail.

    Raises:
        ConfigurationError: as :func:`parse_options`.
    """
    given = {} if limits is None else limits
    return _group("limits", given, LimitOptions), _redactor("redact", redact)


_HINTS = {
    "namespace": "1 to 64 characters of A-Z a-z 0-9 _ -",
    "adapter": "an adapter URL (sqlite:///path), a mapping with 'type', or an adapter object",
}


def _per_tenant(parsed: Mapping[str, Any]) -> bool:
    tenancy = parsed.get("tenancy")
    return tenancy is not None and tenancy.mode == "database_per_tenant"


def _group(name: str, value: Any, group: type[Any]) -> Any:
    if isinstance(value, group):
        value = msgspec.structs.asdict(value)
    if not isinstance(value, Mapping):
        raise ConfigurationError(name, value, f"a mapping of {_names(group)}")
    values = {key: value[key] for key in value}
    _refuse_unknown(name + ".", values, group)
    return group(**{key: _value(f"{name}.{key}", item) for key, item in values.items()})


def _refuse_unknown(prefix: str, values: Mapping[Any, Any], group: type[Any]) -> None:
    known = _fields(group)
    for key in values:
        if key not in known:
            groups = () if prefix else _GROUPS.items()  # a group's option that stands outside it
            meant = next((f"{name}.{key}" for name, one in groups if key in _fields(one)), None)
            raise ConfigurationError.unknown(str(key), values[key], known, prefix, meant)


def _fields(group: type[Any]) -> tuple[str, ...]:
    fields: tuple[str, ...] = group.__struct_fields__
    return fields


def _names(group: type[Any]) -> str:
    return ", ".join(_fields(group))


def _value(option: str, value: Any) -> Any:
    if option in _RANGES:
        return None if value is None and option in _OPTIONAL else _number(option, value)
    if option in _CHOICES:
        if value not in _CHOICES[option]:
            raise ConfigurationError(option, value, " or ".join(map(repr, _CHOICES[option])))
        return value
    if option == "namespace":
        fits = isinstance(value, str) and _NAMESPACE.fullmatch(value)
        if not fits and value is not None:  # which is a missing one
            raise ConfigurationError(option, value, _HINTS["namespace"])
        return value
    if option == "data_dir":
        return _folder(option, value)
    if option == "require_tenant_id":
        if not isinstance(value, bool):
            raise ConfigurationError(option, value, "True or False")
        return value
    if option in {"on_event", "tenancy.resolve_connection"}:
        if value is not None and not callable(value):
            raise ConfigurationError(option, value, "a callable")
        return value
    if option == "retention.cron":
        return _cron(option, value)
    if option == "retention.tenants":
        return _tenant_days(option, value)
    if option == "redact":
        return _redactor(option, value)
    return value


def _number(option: str, value: Any) -> float:
    low, high = _RANGES[option]
    whole = isinstance(low, int)
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(option, value, f"{kind} from {low:,} to {high:,}")
    return value


def _folder(option: str, value: Any) -> Path:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if isinstance(path, str) and path and "\0" not in path:
        with suppress(RuntimeError):  # "~somebody" who is not known here
            return Path(path).expanduser().absolute()
    raise ConfigurationError(option, value, "the path of a folder")


def _cron(option: str, value: Any) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415 - imported only where it is configured

    from cronsim import CronSim, CronSimError  # noqa: PLC0415

    try:
        if len(value.split()) != 5:
            raise CronSimError
        CronSim(value, datetime.now(UTC))
    except (CronSimError, AttributeError):
        allowed = "a five-field cron expression in UTC, e.g. '0 0 * * *'"
        raise ConfigurationError(option, value, allowed) from None
    return str(value)


def _tenant_days(option: str, value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(option, value, "a mapping of tenant ids to days")
    days = {clean_tenant_id(plain_text(tenant)): value[tenant] for tenant in value}
    low, high = _RANGES["retention.days"]
    if "" in days:
        raise ConfigurationError(f"{option}['']", days[""], "absent: it is the id of no tenant")
    for tenant, number in days.items():
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            allowed = f"a whole number from {low:,} to {high:,}"
            raise ConfigurationError(f"{option}[{tenant!r}]", number, allowed)
    return days


def _redactor(option: str, value: Any) -> Redactor | None:
    if value is None:
        return Redactor(DEFAULT_RULES)
    if isinstance(value, Redactor):
        return value
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ConfigurationError(option, value, "a list of key names or dotted paths")
    rules = list(value)
    return Redactor([*DEFAULT_RULES, *rules]) if rules else None


def _check_together(options: TrailOptions, given: Mapping[str, Any]) -> None:
    for name in ("fsync", "wal"):
        if name in given and options.mode != "durable":
            allowed = f"absent with mode={options.mode!r}, which writes no WAL; or mode='durable'"
            raise ConfigurationError(name, given[name], allowed)
    if options.mode == "durable" and options.batching.on_queue_full == "drop":
        allowed = "'dlq' or 'block' with mode='durable', which never drops; or mode='volatile'"
        raise ConfigurationError("batching.on_queue_full", "drop", allowed)
    tenancy = options.tenancy
    if tenancy.mode == "database_per_tenant":
        if tenancy.resolve_connection is None:
            allowed = "a callable that returns a tenant's adapter, with mode 'database_per_tenant'"
            raise ConfigurationError("tenancy.resolve_connection", None, allowed)
        if options.adapter is not None:
            allowed = "absent with tenancy.mode='database_per_tenant': resolve_connection names it"
            raise ConfigurationError("adapter", options.adapter, allowed)
        if not options.require_tenant_id:
            allowed = "True with tenancy.mode='database_per_tenant': no database takes the others"
            raise ConfigurationError("require_tenant_id", False, allowed)  # noqa: FBT003
    elif tenancy.resolve_connection is not None:
        allowed = "absent unless tenancy.mode='database_per_tenant'"
        raise ConfigurationError("tenancy.resolve_connection", tenancy.resolve_connection, allowed)


def _check_use(options: TrailOptions, values: Mapping[str, Any]) -> None:
    """Refuse what was said and would do nothing."""
    if "pool" in values and options.tenancy.mode != "database_per_tenant":
        allowed = "absent unless tenancy.mode='database_per_tenant': there is one database"
        raise ConfigurationError("pool", values["pool"], allowed)
    if options.mode == "durable":
        _check_writable(options)
    batching, limits, retention = options.batching, options.limits, options.retention
    wal = options.wal
    if wal.max_bytes is not None and wal.max_bytes < wal.segment_bytes:
        allowed = f"at least wal.segment_bytes, which is {wal.segment_bytes:,}, or None"
        raise ConfigurationError("wal.max_bytes", wal.max_bytes, allowed)
    if limits.max_payload_bytes > limits.max_queued_bytes:
        allowed = f"at most limits.max_queued_bytes, which is {limits.max_queued_bytes:,}"
        raise ConfigurationError("limits.max_payload_bytes", limits.max_payload_bytes, allowed)
    if _says(values, "batching", "max_size") and batching.max_size > batching.max_queue_size:
        allowed = f"at most batching.max_queue_size, which is {batching.max_queue_size:,}"
        raise ConfigurationError("batching.max_size", batching.max_size, allowed)
    if _says(values, "batching", "block_timeout") and batching.on_queue_full != "block":
        allowed = "absent unless batching.on_queue_full='block': nobody waits"
        raise ConfigurationError("batching.block_timeout", batching.block_timeout, allowed)
    says_when = _says(values, "retention", "cron")
    if says_when and not retention.tenants and not _says(values, "retention", "days"):
        allowed = "with retention.days or retention.tenants: without them nothing is pruned"
        raise ConfigurationError("retention.cron", retention.cron, allowed)


def _check_writable(options: TrailOptions) -> None:
    """Refuse a folder in which a durable trail could write nothing.

    Nothing is made yet: who configures a server may be another user than who serves.
    """
    wanted = options.folder / "wal"
    found = next(path for path in (wanted, *wanted.parents) if os.path.lexists(path))
    if not found.is_dir():
        problem = f"{found} is no folder"
    elif not os.access(found, os.W_OK | os.X_OK):
        problem = f"this user cannot write in {found}"
    else:
        return
    allowed = "a folder that this user can write: mode='durable' keeps every event there first"
    raise ConfigurationError("data_dir", str(options.data_dir), allowed, problem=problem)


def _says(values: Mapping[str, Any], group: str, name: str) -> bool:
    given = values.get(group, {})
    if isinstance(given, Mapping):
        return name in given
    return bool(getattr(given, name) != getattr(_GROUPS[group](), name))
