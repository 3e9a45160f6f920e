"""From what a user wrote to an adapter: URL, mapping or instance.

No driver is imported before the adapter that needs it is made.
"""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from logbun_logging.adapters.base import Adapter
from logbun_logging.errors import ConfigurationError

__all__ = ["CLASSES", "create_adapter", "load_adapter_class"]

#: Adapter class name to the module that has it.
CLASSES: Final = {
    "SQLiteAdapter": "logbun_logging.adapters.sqlite.adapter",
    "TursoAdapter": "logbun_logging.adapters.turso.adapter",
    "ClickHouseAdapter": "logbun_logging.adapters.clickhouse.adapter",
}

_TYPES: Final = {
    "sqlite": "SQLiteAdapter",
    "turso": "TursoAdapter",
    "clickhouse": "ClickHouseAdapter",
}

_SCHEMES: Final = {
    "sqlite": "SQLiteAdapter",
    "libsql": "TursoAdapter",
    "clickhouse": "ClickHouseAdapter",
    "clickhouses": "ClickHouseAdapter",
    "chdb": "ClickHouseAdapter",
}


#: The methods that an adapter may have besides those that it must have.
_OPTIONAL: Final = ("bulk_insert_many", "insert_encoded", "after_fork", "exists")


def load_adapter_class(name: str) -> Any:
    """Import and return one of the adapter classes of this package."""
    return getattr(import_module(CLASSES[name]), name)


def create_adapter(spec: Any, option: str = "adapter") -> Adapter:
    """Return the adapter that *spec* describes: a URL, a mapping with ``type``, or an instance.

    Raises:
        ConfigurationError: it describes none.
    """
    if isinstance(spec, str):
        return _from_url(spec, option)
    if isinstance(spec, Mapping):
        return _from_mapping({key: spec[key] for key in spec}, option)
    methods = ("init", "bulk_insert", "query", "prune", "close")
    missing = [name for name in methods if not callable(getattr(spec, name, None))]
    if missing or isinstance(spec, type):
        allowed = f"a URL, a mapping with 'type', or an object with {', '.join(methods)}"
        problem = (
            "this is a class: pass an object of it"
            if isinstance(spec, type)
            else f"this object has no {', '.join(missing)}"
        )
        raise ConfigurationError(option, spec, allowed, problem=problem)
    waiting = [name for name in (*methods, *_OPTIONAL) if _is_async(getattr(spec, name, None))]
    if waiting:
        allowed = (
            "an adapter whose methods are plain functions: nobody awaits what an 'async def' "
            "returns, so nothing would be stored"
        )
        problem = f"{', '.join(waiting)} must not be async"
        raise ConfigurationError(option, spec, allowed, problem=problem)
    adapter: Adapter = spec
    return adapter


def _is_async(method: Any) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


def _from_mapping(options: dict[str, Any], option: str) -> Adapter:
    if "url" in options and "type" not in options:
        options["type"] = _SCHEMES.get(str(options["url"]).partition(":")[0], "")
    kind = options.pop("type", None)
    name = _TYPES.get(kind, kind) if isinstance(kind, str) else None
    if name not in CLASSES:
        raise ConfigurationError(f"{option}.type", kind, " or ".join(map(repr, _TYPES)))
    adapter_class = load_adapter_class(name)
    known = inspect.signature(adapter_class).parameters
    for key, value in options.items():
        if key not in known:
            raise ConfigurationError.unknown(str(key), value, known, f"{option}.")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and options.get(key) is None:
            allowed = f"an argument of {name} ({', '.join(known)})"
            raise ConfigurationError.missing(f"{option}.{key}", allowed)
    try:
        adapter: Adapter = adapter_class(**options)
    except TypeError as error:
        raise ConfigurationError(option, options, f"the arguments of {name} ({error})") from error
    return adapter


def _from_url(url: str, option: str) -> Adapter:
    scheme = url.partition("://")[0]
    name = _SCHEMES.get(scheme)
    if name is None or "://" not in url:
        schemes = ", ".join(f"{known}://" for known in _SCHEMES)
        raise ConfigurationError(option, url, f"a URL that starts with one of {schemes}")
    if name != "SQLiteAdapter":
        adapter: Adapter = load_adapter_class(name)(url=url)
        return adapter
    from urllib.parse import parse_qsl, unquote, urlsplit  # noqa: PLC0415 - costs 10 ms

    allowed = (
        "sqlite:///relative/path or sqlite:////absolute/path, in which # and ? are written %23 and "
        "%3F, and control characters have no place"
    )
    try:
        parts = urlsplit(url)
        options: dict[str, Any] = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ConfigurationError(option, url, allowed) from None
    # What would be dropped without a word makes one file of two names.
    unprintable = any(unicodedata.category(character) == "Cc" for character in unquote(url))
    if parts.netloc or "#" in url or url.endswith("?") or unprintable:
        raise ConfigurationError(option, url, allowed)
    if "busy_timeout" in options:
        try:
            options["busy_timeout"] = float(options["busy_timeout"])
        except ValueError:
            allowed = "busy_timeout as a number of seconds"
            raise ConfigurationError(option, url, allowed) from None
    return _from_mapping({"type": "sqlite", "path": unquote(parts.path[1:]), **options}, option)
