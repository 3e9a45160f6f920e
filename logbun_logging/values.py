"""The defined form of values that JSON cannot hold, and the limits on their size.

Encoding tries the C encoder first. Only what that refuses or changes, and what may be too large,
comes here, so this module favours certainty over speed: :class:`Normalizer` turns *any* object into
plain JSON values and never raises. What it makes of a type that the C encoder knows (datetime,
UUID, Decimal, Enum, set, bytes, dataclass) is what that makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import Any, Final

import msgspec

__all__ = [
    "REDACTED",
    "Normalizer",
    "clean_tenant_id",
    "clean_text",
    "cut_start",
    "cut_text",
    "plain_text",
    "safe_str",
]

#: What a redacted value is replaced by.
REDACTED: Final = "[REDACTED]"

#: Deeper nesting than this is replaced by ``"[TOO DEEP]"``.
MAX_DEPTH: Final = 32

#: A container's items past this number are left out and counted in a mark.
MAX_ITEMS: Final = 10_000


def safe_str(value: object) -> str:
    """Return ``str(value)``, or a description of the object if its own code fails."""
    try:
        text = str(value)
        return text if type(text) is str else str.__str__(text)
    except Exception:
        return f"<unprintable {type(value).__name__}>"


def plain_text(value: object) -> str:
    """Return *value* as text, or a description of it if its own code fails.

    A string stands for its characters, whatever its class makes of ``str()``, and the member of an
    Enum for its value; of everything else it is ``str()``.
    """
    try:
        if isinstance(value, str):
            return str.__str__(value)
        return safe_str(value.value if isinstance(value, Enum) else value)
    except Exception:  # an object that lies about its class
        return safe_str(value)


def clean_text(text: str) -> str:
    """Replace what not every database can store.

    NUL becomes U+2400 (SYMBOL FOR NULL), a lone surrogate U+FFFD (REPLACEMENT CHARACTER);
    surrogates that make a pair are joined to the character that they mean.
    """
    if "\0" in text:
        text = text.replace("\0", "\u2400")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def cut_text(text: str, limit: int) -> str:
    """Cut *text* to at most *limit* bytes of UTF-8, the mark ``…[+N bytes]`` included.

    The cut falls between characters.
    """
    data = text.encode()
    if len(data) <= limit:
        return text
    mark = f"…[+{len(data) - limit} bytes]"
    mark = f"…[+{len(data) - limit + len(mark.encode())} bytes]"
    room = max(0, limit - len(mark.encode()))
    return data[:room].decode(errors="ignore") + mark


def cut_start(text: str, limit: int) -> str:
    """Cut *text* as :func:`cut_text` does, but keep its end: where a traceback says what it was."""
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return text
    mark = f"[+{len(data)} bytes]…"
    room = max(0, limit - len(mark.encode()))
    return mark + data[len(data) - room :].decode(errors="ignore")


def clean_tenant_id(tenant_id: str, limit: int) -> str:
    """Return a storable tenant id that stays distinct from every other one.

    An id that has to be cleaned or cut carries a digest of the original, so that two tenants can
    never become one. Events and queries both pass through here.
    """
    cleaned = clean_text(tenant_id)
    if cleaned == tenant_id and len(tenant_id.encode()) <= limit:
        return tenant_id
    from hashlib import sha256  # noqa: PLC0415 - loads OpenSSL, which most processes never need

    digest = sha256(tenant_id.encode("utf-8", "surrogatepass")).hexdigest()
    mark = f"…[sha256:{digest[:32]}]"
    return cleaned.encode()[: limit - len(mark.encode())].decode(errors="ignore") + mark


class Normalizer:
    """Turns one event's values into plain JSON values, within limits.

    Args:
        max_string_bytes: longer strings are cut and marked.
        redacts: told the path of a key, says whether its value must not be written.

    After use, :attr:`cuts` counts the values that were cut.
    """

    def __init__(
        self,
        max_string_bytes: int,
        redacts: Callable[[tuple[str, ...]], bool] | None = None,
    ) -> None:
        self.cuts = 0
        self._limit = max_string_bytes
        self._redacts = redacts
        self._open: set[int] = set()  # ids of the containers that we are inside of

    def text(self, value: object) -> str:
        """Return *value* as storable text within the limit."""
        text = clean_text(plain_text(value))
        if len(text) * 4 <= self._limit:
            return text
        cut = cut_text(text, self._limit)
        self.cuts += cut is not text
        return cut

    def object(self, value: object, *path: str) -> dict[str, Any]:
        """Return *value* as a JSON object; what is not one becomes ``{"value": …}``."""
        plain = self.value(value, path)
        return plain if type(plain) is dict else {"value": plain}

    def value(self, value: Any, path: tuple[str, ...] = ()) -> Any:
        """Return the JSON form of any object; never raises."""
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return self.text(value)
        try:
            return self._convert(value, path)
        except Exception:
            if self._redacts is None:
                return self.text(value)
            # Its text may show the very field that must not be written.
            return self.text(f"[UNREADABLE {kind.__name__}]")

    def _convert(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, bool | int | float) and not hasattr(value, "value"):
            return _number(value)
        if isinstance(value, Mapping):
            return self._inside(value, path, self._mapping)
        if isinstance(value, list | tuple | AbstractSet | Sequence) and not isinstance(
            value, str | bytes | bytearray | memoryview
        ):
            return self._inside(value, path, self._items)
        if isinstance(value, BaseException):
            return self.text(f"{type(value).__name__}: {safe_str(value)}")
        if isinstance(value, str | PurePath):
            return self.text(value)
        if isinstance(value, msgspec.Raw):
            return self._inside(value, path, self._raw)
        if isinstance(value, memoryview):  # has a tolist() as well
            return self.text(msgspec.to_builtins(bytes(value)))
        for method in ("model_dump", "tolist"):  # pydantic models; numpy arrays and scalars
            if callable(getattr(type(value), method, None)):
                convert = getattr(value, method)
                return self._inside(convert, path, self._call)
        if hasattr(type(value), "__dataclass_fields__") or hasattr(type(value), "__attrs_attrs__"):
            return self._inside(value, path, self._attributes)
        return self._builtin(value, path)

    def _builtin(self, value: Any, path: tuple[str, ...]) -> Any:
        def convert(inner: Any) -> Any:
            # What is nothing but itself stands for its text; what failed halfway does not.
            return self.text(inner) if inner is value else self.value(inner)

        builtin = msgspec.to_builtins(value, enc_hook=convert)
        return self.value(builtin, path) if builtin is not value else self.text(value)

    def _inside(
        self, value: Any, path: tuple[str, ...], convert: Callable[[Any, tuple[str, ...]], Any]
    ) -> Any:
        if id(value) in self._open:
            return "[CIRCULAR]"
        if len(self._open) >= MAX_DEPTH:
            return "[TOO DEEP]"
        self._open.add(id(value))
        try:
            return convert(value, path)
        finally:
            self._open.discard(id(value))

    def _mapping(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        # Copied in one go: another thread may be changing it.
        for key, item in [*islice(value.items(), MAX_ITEMS)]:
            text = clean_text(_key_text(key))
            name = _free_name(self.text(text), result)
            inner = (*path, text)  # the name as it was given: not cut, nor made distinct
            if self._redacts is not None and self._redacts(inner):
                result[name] = REDACTED
            else:
                result[name] = self.value(item, inner)
        if len(value) > MAX_ITEMS:
            self.cuts += 1
            result[_free_name("…", result)] = f"[+{len(value) - MAX_ITEMS} items]"
        return result

    def _items(self, value: Any, path: tuple[str, ...]) -> list[Any]:
        result = [self.value(item, path) for item in [*islice(value, MAX_ITEMS)]]
        if len(value) > MAX_ITEMS:
            self.cuts += 1
            result.append(f"[+{len(value) - MAX_ITEMS} items]")
        return result

    def _raw(self, value: msgspec.Raw, path: tuple[str, ...]) -> Any:
        try:
            decoded = msgspec.json.decode(value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # Not even as text: what is secret in it can only be found by reading it.
            return "[MALFORMED JSON]"
        return self.value(decoded, path)

    def _call(self, convert: Callable[[], Any], path: tuple[str, ...]) -> Any:
        return self.value(convert(), path)

    def _attributes(self, value: Any, path: tuple[str, ...]) -> Any:
        fields = getattr(value, "__dataclass_fields__", None)
        names = list(fields) if fields else [field.name for field in value.__attrs_attrs__]
        return self._mapping({name: getattr(value, name) for name in names}, path)


def _number(value: float) -> int | float | str | bool | None:
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return _integer(int.__int__(value))
    real = float.__float__(value)
    return real if math.isfinite(real) else None  # as ECMA-262's JSON.stringify, and the C encoder


def _integer(number: int) -> int | str:
    """JSON has no largest integer; Python refuses to print one of over 4,300 digits."""
    try:
        str(number)
    except ValueError:
        return hex(number)
    return number


def _key_text(key: object) -> str:
    if isinstance(key, str):
        return plain_text(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    try:
        builtin = msgspec.to_builtins(key)
    except Exception:
        return safe_str(key)
    return builtin if type(builtin) is str else safe_str(builtin)


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name
