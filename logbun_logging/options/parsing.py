"""From what a user wrote to :class:`TrailOptions`: checked once, at the border.

:func:`parse_options` refuses unknown names, checks each value by its type (``checks``) or by one of
the functions in ``_PARSERS``, and then checks the options together. Called by
:class:`~logbun_logging.AuditTrail` for each new trail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from logbun_logging._encoding.redaction import DEFAULT_RULES, Redactor
from logbun_logging._encoding.values import clean_tenant_id, plain_text
from logbun_logging.errors import ConfigurationError
from logbun_logging.options.checks import allowed_by, check, is_group, kinds
from logbun_logging.options.model import Days, LimitOptions, Namespace, TrailOptions

__all__ = ["parse_encoding", "parse_options"]

_ADAPTER_FORMS: Final = (
    "an adapter URL (sqlite:///path), a mapping with 'type', or an adapter object"
)


def parse_options(given: Mapping[str, Any]) -> TrailOptions:
    """Check what a user gave and fill in the defaults.

    Raises:
        ConfigurationError: an option is unknown, missing, or has a value that is not allowed; the
            message names the option, the value and what is allowed.
    """
    values = _resolved(given)
    _refuse_unknown("", values, TrailOptions)
    if values.get("namespace") is None:
        raise ConfigurationError.missing("namespace", allowed_by(Namespace) or "")
    known = kinds(TrailOptions)
    parsed = {name: _value(name, value, known[name]) for name, value in values.items()}
    parsed.setdefault("adapter", None)
    tenancy = parsed.get("tenancy")
    if tenancy is not None and tenancy.mode == "database_per_tenant":
        parsed.setdefault("require_tenant_id", True)
    elif parsed["adapter"] is None:
        raise ConfigurationError.missing("adapter", _ADAPTER_FORMS)
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


def _resolved(given: Mapping[Any, Any]) -> dict[Any, Any]:
    # Indexing resolves the cfg:// and ext:// references of dictConfig.
    return {name: given[name] for name in given}


def _group(name: str, value: Any, group: type[msgspec.Struct]) -> Any:
    known = kinds(group)
    if isinstance(value, group):
        value = msgspec.structs.asdict(value)
    if not isinstance(value, Mapping):
        raise ConfigurationError(name, value, f"a mapping of {', '.join(known)}")
    values = _resolved(value)
    _refuse_unknown(name + ".", values, group)
    return group(**{key: _value(f"{name}.{key}", item, known[key]) for key, item in values.items()})


def _refuse_unknown(prefix: str, values: Mapping[Any, Any], group: type[msgspec.Struct]) -> None:
    known = kinds(group)
    for key in values:
        if key not in known:
            # An option of a group that stands outside it is named with its group.
            groups = {name: kinds(kind) for name, kind in known.items() if is_group(kind)}
            meant = next((f"{name}.{key}" for name, inner in groups.items() if key in inner), None)
            raise ConfigurationError.unknown(str(key), values[key], known, prefix, meant)


def _value(option: str, value: Any, kind: Any) -> Any:
    if is_group(kind):
        return _group(option, value, kind)
    parse = _PARSERS.get(option)
    if parse is not None:
        return parse(option, value)
    check(option, value, kind)
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
    if "" in days:
        raise ConfigurationError(f"{option}['']", days[""], "absent: it is the id of no tenant")
    for tenant, number in days.items():
        check(f"{option}[{tenant!r}]", number, Days)
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


#: What turns the value of an option into what the engine reads, where a type does not say enough.
_PARSERS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "data_dir": _folder,
    "retention.cron": _cron,
    "retention.tenants": _tenant_days,
    "redact": _redactor,
}


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
        allowed = "absent unless batching.on_queue_full='block': no call waits"
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
    return bool(getattr(given, name) != getattr(kinds(TrailOptions)[group](), name))
