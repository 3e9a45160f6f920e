"""What a user may say about a ClickHouse database: checked, and complete.

Names go into SQL text, so nothing but letters, digits, ``_`` and ``-`` is let into them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from logbun_logging.errors import ConfigurationError

__all__ = ["ClickHouseOptions", "parse_options"]

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
_NAMES: Final = "1 to 128 of the characters A-Z a-z 0-9 _ -, a letter or _ at first"
_FORMS: Final = (
    "clickhouse://user:password@host:8123/database, clickhouses:// for TLS, "
    "or chdb:///absolute/folder"
)
_PARTS: Final = (
    f"{_FORMS}, the port from 1 to 65,535, and signs like # / ? @ in a name or a password "
    "percent-encoded (%23 %2F %3F %40)"
)
_SCHEMES: Final = {"clickhouse", "clickhouses", "chdb"}

#: What the query part of a URL may have, and how it is read.
_IN_QUERY: Final[dict[str, type]] = {
    "database": str,
    "retention_days": int,
    "cluster": str,
    "async_insert": bool,
    "timeout": float,
}
_FLAGS: Final = {"0": False, "false": False, "1": True, "true": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickHouseOptions:
    """The arguments of the adapter, which describes them."""

    host: str
    port: int
    path: Path | None
    database: str
    username: str
    password: str
    secure: bool
    retention_days: int | None
    cluster: str | None
    async_insert: bool
    timeout: float
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"ClickHouseOptions(host={self.host!r}, port={self.port}, path={self.path!r})"


def parse_options(*, url: str | None, **given: Any) -> ClickHouseOptions:
    """Return checked options; what the URL says counts where *given* has None.

    Raises:
        ConfigurationError: one is not allowed, or the driver that they need is not installed.
    """
    if sum(place is not None for place in (url, given["host"], given["path"])) != 1:
        shown = {name: given[name] for name in ("host", "path")} | {"url": url}
        raise ConfigurationError("adapter", shown, "one of url, host and path")
    values = dict(given)
    if url is not None:
        for name, value in _from_url(url).items():
            if values[name] is None or name in {"secure", "async_insert", "timeout"}:
                values[name] = value
    embedded = values["path"] is not None
    _check(values, embedded=embedded)
    _require_driver(embedded=embedded)
    port = values["port"] or (8443 if values["secure"] else 8123)
    return ClickHouseOptions(
        host=values["host"] or "",
        port=port,
        path=Path(values["path"]).expanduser().absolute() if embedded else None,
        database=values["database"] or "default",
        username=values["username"] or "default",
        password=values["password"] or "",
        secure=values["secure"],
        retention_days=values["retention_days"],
        cluster=values["cluster"],
        async_insert=values["async_insert"] and not embedded,
        timeout=float(values["timeout"]),
        settings=dict(values["settings"] or {}),
    )


def _from_url(url: Any) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        scheme, port = parts.scheme, parts.port
    except (ValueError, AttributeError):
        raise ConfigurationError("adapter.url", url, _PARTS) from None
    if parts.fragment:
        raise ConfigurationError("adapter.url", url, _PARTS)
    if scheme not in _SCHEMES or bool(parts.hostname) == (scheme == "chdb"):
        raise ConfigurationError("adapter.url", url, _FORMS)
    values = _query_part(url, parts)
    if scheme == "chdb":
        if not parts.path.strip("/"):
            allowed = f"{_FORMS}: an audit log in memory is none"
            raise ConfigurationError("adapter.url", url, allowed)
        return {**values, "path": unquote(parts.path)}
    values |= {"host": parts.hostname, "port": port, "secure": scheme == "clickhouses"}
    for name, value in (
        ("username", parts.username),
        ("password", parts.password),
        ("database", parts.path.strip("/")),
    ):
        if value:
            values[name] = unquote(value)
    return values


def _query_part(url: str, parts: SplitResult) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        kind = _IN_QUERY.get(name)
        if kind is None:
            allowed = f"a URL with none but {', '.join(_IN_QUERY)} behind the '?'"
            raise ConfigurationError("adapter.url", url, allowed)
        try:
            values[name] = _FLAGS[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            allowed = "0 or 1" if kind is bool else f"a number ({kind.__name__})"
            raise ConfigurationError(f"adapter.{name}", text, allowed) from None
    return values


def _check(values: Mapping[str, Any], *, embedded: bool) -> None:
    for name in ("database", "cluster"):
        value = values[name]
        if value is not None and not (isinstance(value, str) and _IDENTIFIER.fullmatch(value)):
            raise ConfigurationError(f"adapter.{name}", value, _NAMES)
    for name in ("host", "username", "password"):
        value = values[name]
        if value is not None and not isinstance(value, str):
            shown = "***" if name == "password" else value
            raise ConfigurationError(f"adapter.{name}", shown, "a string")
    for name in ("secure", "async_insert"):
        if not isinstance(values[name], bool):
            raise ConfigurationError(f"adapter.{name}", values[name], "True or False")
    for name, last in (("port", 65_535), ("retention_days", 36_500)):
        value = values[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and 1 <= value <= last):
            raise ConfigurationError(f"adapter.{name}", value, f"a whole number from 1 to {last:,}")
    timeout = values["timeout"]
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or not 0.05 <= timeout <= 3600:
        raise ConfigurationError("adapter.timeout", timeout, "0.05 to 3,600 seconds")
    if not isinstance(values["settings"] or {}, Mapping):
        allowed = "a mapping of ClickHouse settings"
        raise ConfigurationError("adapter.settings", values["settings"], allowed)
    if embedded:
        _check_embedded(values)


def _check_embedded(values: Mapping[str, Any]) -> None:
    try:
        path = str(Path(values["path"]))
    except TypeError:
        path = ""
    if path in {"", ".", ":memory:"}:
        raise ConfigurationError("adapter.path", values["path"], "the path of a folder")
    for name in ("cluster", "port", "username", "password"):
        if values[name] is not None:
            shown = "***" if name == "password" else values[name]
            allowed = "absent with chdb, which is in this process and has neither server nor login"
            raise ConfigurationError(f"adapter.{name}", shown, allowed)


def _require_driver(*, embedded: bool) -> None:
    """Import the driver here, on the thread that configures, and tell how to install it.

    A background thread's import that a fork interrupts is never finished in the child. chdb itself
    must not be imported before it is used: its threads would not survive a fork.
    """
    extra = "chdb" if embedded else "clickhouse"
    try:
        import_module("clickhouse_connect")
        if embedded and find_spec("chdb") is None:
            raise ModuleNotFoundError("No module named 'chdb'")
    except ImportError as error:
        allowed = f"a driver that is installed: install the extra {extra!r} of logbun-logging"
        raise ConfigurationError(
            "adapter", "ClickHouseAdapter", allowed, problem=str(error)
        ) from error
