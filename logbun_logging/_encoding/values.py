"""The defined form of values that JSON cannot hold, and the limits on their size.

Encoding tries the C encoder first. Only what that refuses or changes, and what may be too large,
comes here, so this module favours certainty over speed: :class:`Normalizer` turns *any* object into
plain JSON values and never raises. What it makes of a type that the C encoder knows (datetime,
UUID, Decimal, Enum, set, bytes, dataclass) is what that makes of it.

Values come from strangers, so their work is bounded. A normalizer has room for so much; each value
takes some of it, as often as it is met, because a small document of aliases can stand for a
billion values. When the room is used up, what is left is marked, counted and not looked at.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import Any, Final

import msgspec

__all__ = [
    "MAX_DEPTH",
    "MIN_DIGESTED",
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

#: Room that every value takes, whatever it is: about what a microsecond is worth.
_VALUE_ROOM: Final = 16

#: Room for the text of a container that is given where a text belongs.
_TEXT_ROOM: Final = 16_384

#: A text of this many bytes takes one byte of room for being read, beside what is kept of it.
_READ_SHIFT: Final = 7

#: Larger integers are written in hexadecimal, whose cost is linear: 4,300 digits, as in CPython.
_MAX_BITS: Final = 14_284

#: A tenant id's longest form. It is no option: whoever reads must find what another has written.
_MAX_TENANT_BYTES: Final = 2_048

#: What ends a tenant id that carries a digest.
_DIGESTED: Final = re.compile("…\\[sha256:[0-9a-f]{32}\\]", re.ASCII)

#: A tenant id of fewer characters is neither too long nor ends like one with a digest.
MIN_DIGESTED: Final = len("…[sha256:]") + 32


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
    Enum for its value; of everything else it is ``str()``. Of a container it is the start.
    """
    try:
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, list | dict | tuple | set | frozenset):
            return safe_str(Normalizer(_TEXT_ROOM, room=_TEXT_ROOM).value(value))
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

    The cut falls between characters. Only what is kept is looked at, apart from its length.
    """
    size = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
    if size <= limit:
        return text
    mark = f"…[+{size - limit} bytes]"
    mark = f"…[+{size - limit + len(mark.encode())} bytes]"
    room = max(0, limit - len(mark.encode()))
    return clean_text(text[:limit]).encode()[:room].decode(errors="ignore") + mark


def cut_start(text: str, limit: int) -> str:
    """Cut *text* as :func:`cut_text` does, but keep its end: where a traceback says what it was."""
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return text
    mark = f"[+{len(data)} bytes]…"
    room = max(0, limit - len(mark.encode()))
    return mark + data[len(data) - room :].decode(errors="ignore")


def clean_tenant_id(tenant_id: str) -> str:
    """Return a storable tenant id that stays distinct from every other one.

    An id that has to be cleaned or cut carries a digest of the original, so that two tenants can
    never become one; so does an id that looks as if it carried one. Everything that names a tenant
    passes through here once: events, queries and retention.
    """
    cleaned = clean_text(tenant_id)
    if (
        cleaned == tenant_id
        and len(tenant_id.encode()) <= _MAX_TENANT_BYTES
        and not _DIGESTED.fullmatch(tenant_id[-MIN_DIGESTED:])
    ):
        return tenant_id
    from hashlib import sha256  # noqa: PLC0415 - loads OpenSSL, which most processes never need

    digest = sha256(tenant_id.encode("utf-8", "surrogatepass")).hexdigest()
    mark = f"…[sha256:{digest[:32]}]"
    room = _MAX_TENANT_BYTES - len(mark.encode())
    return cleaned.encode()[:room].decode(errors="ignore") + mark


class Normalizer:
    """Turns one event's values into plain JSON values, within limits.

    Args:
        max_string_bytes: longer strings are cut and marked.
        redacts: told the path of a key, says whether its value must not be written.
        room: how much may be made of the values: each value and each key takes 16, and 1 for
            each byte of its text (each bit of an integer).

    Attributes:
        room: what is left of it; may be set between two values.
        cuts: how many values were cut.
        opaque: the types of objects of which there is nothing to store but what ``str()`` says.
    """

    def __init__(
        self,
        max_string_bytes: int,
        redacts: Callable[[tuple[str, ...]], bool] | None = None,
        *,
        room: int = sys.maxsize,
    ) -> None:
        self.room = room
        self.cuts = 0
        self.opaque: list[str] = []
        self._limit = max_string_bytes
        self._redacts = redacts
        self._open: set[int] = set()  # ids of the containers that we are inside of

    def text(self, value: object) -> str:
        """Return *value* as storable text within the limit."""
        text = plain_text(value)
        size = kept = len(text)
        if size <= self._limit:
            text = clean_text(text)
            if not text.isascii():
                kept = len(text.encode())
        self.room -= min(kept, self._limit) + (size >> _READ_SHIFT)
        if size * 4 <= self._limit:
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
        self.room -= _VALUE_ROOM
        kind = type(value)
        if kind is str:
            return self.text(value)
        if value is None or kind is bool:
            return value
        try:
            if kind is int:
                return self._number(value)
            return self._convert(value, path)
        except Exception:
            if self._redacts is None:
                return self.text(value)
            # Its text may show the very field that must not be written.
            return self.text(f"[UNREADABLE {kind.__name__}]")

    def _convert(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Enum):
            return self._inside(value, path, self._member)
        if isinstance(value, bool | int | float):
            return self._number(value)
        if isinstance(value, Mapping):
            return self._inside(value, path, self._mapping)
        kind = type(value)
        if callable(getattr(kind, "_asdict", None)):  # a named tuple, or a row that is one
            return self._inside(value, path, self._named_tuple)
        if callable(getattr(kind, "keys", None)) and hasattr(kind, "__getitem__"):  # a row
            return self._inside(value, path, self._row)
        if isinstance(value, list | tuple | AbstractSet | Sequence) and not isinstance(
            value, str | bytes | bytearray | memoryview
        ):
            return self._inside(value, path, self._items)
        if isinstance(value, BaseException):
            return self.text(f"{kind.__name__}: {safe_str(value)}")
        if isinstance(value, str | PurePath):
            return self.text(value)
        if isinstance(value, msgspec.Raw):
            return self._inside(value, path, self._raw)
        if isinstance(value, memoryview):  # has a tolist() as well
            return self._scalar(bytes(value), path)
        if callable(getattr(kind, "model_dump", None)):
            return self._inside(value, path, self._model)
        if callable(getattr(kind, "tolist", None)):  # numpy arrays and scalars
            return self._inside(value, path, self._array)
        if isinstance(value, msgspec.Struct):
            return self._inside(value, path, self._struct)
        if hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__attrs_attrs__"):
            return self._inside(value, path, self._attributes)
        return self._scalar(value, path)

    def _inside(
        self, value: Any, path: tuple[str, ...], convert: Callable[[Any, tuple[str, ...]], Any]
    ) -> Any:
        if id(value) in self._open:
            return "[CIRCULAR]"
        if len(self._open) >= MAX_DEPTH:
            self.cuts += 1
            return "[TOO DEEP]"
        self._open.add(id(value))
        try:
            return convert(value, path)
        finally:
            self._open.discard(id(value))

    # ── what has names ──

    def _mapping(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> dict[str, Any]:
        return self._pairs(value.items(), len(value), path)

    def _named_tuple(self, value: Any, path: tuple[str, ...]) -> Any:
        return self.value(value._asdict(), path)

    def _row(self, value: Any, path: tuple[str, ...]) -> dict[str, Any]:
        names = list(value.keys())
        values = value if isinstance(value, Sequence) else map(value.__getitem__, names)
        return self._pairs(zip(names, values, strict=True), len(names), path)

    def _struct(self, value: msgspec.Struct, path: tuple[str, ...]) -> dict[str, Any]:
        config: Any = value.__struct_config__
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        pairs = [] if config.tag is None else [(config.tag_field, config.tag)]
        pairs += [(name, getattr(value, field)) for name, field in names]
        pairs = [(name, item) for name, item in pairs if item is not msgspec.UNSET]
        return self._pairs(pairs, len(pairs), path)

    def _attributes(self, value: Any, path: tuple[str, ...]) -> dict[str, Any]:
        fields = getattr(value, "__dataclass_fields__", None)
        names = list(fields) if fields else [field.name for field in value.__attrs_attrs__]
        return self._pairs([(name, getattr(value, name)) for name in names], len(names), path)

    def _model(self, value: Any, path: tuple[str, ...]) -> Any:
        dumped = value.model_dump()
        if self._redacts is not None and hasattr(type(value), "model_fields"):  # of pydantic
            self._redact_aliases(dumped, value.model_dump(by_alias=True), path)
        return self.value(dumped, path)

    def _redact_aliases(self, dumped: Any, aliased: Any, path: tuple[str, ...]) -> None:
        """Redact in *dumped* what a rule names by its alias; both have the same structure."""
        if type(dumped) is dict and type(aliased) is dict:
            for (name, item), (alias, other) in zip(
                [*dumped.items()], aliased.items(), strict=True
            ):
                if alias != name and self._must_hide(alias, (*path, _key_text(alias))):
                    dumped[name] = REDACTED
                else:
                    self._redact_aliases(item, other, (*path, _key_text(name)))
        elif type(dumped) is list and type(aliased) is list:
            for item, other in zip(dumped, aliased, strict=True):
                self._redact_aliases(item, other, path)

    def _pairs(
        self, pairs: Iterable[tuple[Any, Any]], total: int, path: tuple[str, ...]
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        tried: dict[str, int] = {}
        # Copied in one go: another thread may be changing it.
        for key, item in [*islice(pairs, self._places())]:
            if self.room <= 0:
                break
            self.room -= _VALUE_ROOM
            text = clean_text(_key_text(key))
            name = _free_name(self.text(text), result, tried)
            inner = (*path, text)  # the name as it was given: not cut, nor made distinct
            result[name] = REDACTED if self._must_hide(key, inner) else self.value(item, inner)
        if len(result) < total:
            result[_free_name("…", result, tried)] = self._left_out(total - len(result))
        return result

    def _must_hide(self, key: Any, path: tuple[str, ...]) -> bool:
        if self._redacts is None:
            return False
        if self._redacts(path):
            return True
        # ASGI's header names are bytes.
        return isinstance(key, bytes) and self._redacts((*path[:-1], key.decode("latin-1")))

    # ── what has none ──

    def _items(self, value: Any, path: tuple[str, ...]) -> list[Any]:
        result: list[Any] = []
        for item in [*islice(value, self._places())]:
            if self.room <= 0:
                break
            if self._redacts is not None and is_named_pair(item):
                name = _key_text(item[0])
                if self._must_hide(item[0], (*path, name)):
                    self.room -= _VALUE_ROOM
                    result.append([self.text(name), REDACTED])
                    continue
            result.append(self.value(item, path))
        if len(result) < len(value):
            result.append(self._left_out(len(value) - len(result)))
        return result

    def _array(self, value: Any, path: tuple[str, ...]) -> Any:
        names = getattr(getattr(value, "dtype", None), "names", None)
        if names:  # of numpy's structured arrays, whose tolist() loses them
            return self._pairs([(name, value[name]) for name in names], len(names), path)
        return self.value(value.tolist(), path)

    def _member(self, value: Enum, path: tuple[str, ...]) -> Any:
        return self.value(value.value, path)

    def _raw(self, value: msgspec.Raw, path: tuple[str, ...]) -> Any:
        size = len(memoryview(value))
        if size > self.room:
            return self._left_out(size, "bytes")
        try:
            decoded = msgspec.json.decode(value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # Not even as text: what is secret in it can only be found by reading it.
            return "[MALFORMED JSON]"
        return self.value(decoded, path)

    def _number(self, value: float) -> int | float | str | bool | None:
        if isinstance(value, bool):
            return bool(value)
        if isinstance(value, int):
            number = int.__int__(value)
            self.room -= number.bit_length()  # more than its digits: they take quadratic time
            try:
                if number.bit_length() <= _MAX_BITS:
                    str(number)  # refuses what is longer than this process allows
                    return number
            except ValueError:
                pass
            return self.text(hex(number))
        real = float.__float__(value)
        return real if math.isfinite(real) else None  # as JSON.stringify, and the C encoder

    def _scalar(self, value: Any, path: tuple[str, ...]) -> Any:
        # Its hook is asked about what it does not know.
        builtin = msgspec.to_builtins(value, enc_hook=_nothing)
        if builtin is not None:
            return self.value(builtin, path)
        kind = type(value)
        if len(path) == 1 or getattr(kind, "__str__", None) is object.__str__:
            self.opaque.append(kind.__qualname__)
        return self.text(value)

    # ── the room ──

    def _places(self) -> int:
        """Return how many values there is room for at most."""
        return max(0, self.room // _VALUE_ROOM + 1)

    def _left_out(self, number: int, unit: str = "items") -> str:
        self.cuts += 1
        return f"[+{number} {unit}]"


def is_named_pair(item: Any) -> bool:
    """Tell whether *item* of a sequence is a name and its value, as header lists have them."""
    kind = type(item)
    if (kind is not tuple and kind is not list) or len(item) != 2:
        return False
    first = type(item[0])
    return first is bytes or (first is str and kind is tuple)


def _nothing(_value: object) -> None:
    """Stand for what the C encoder does not know."""


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


def _free_name(name: str, taken: Mapping[str, Any], tried: dict[str, int]) -> str:
    """Return *name*, or with a number behind it if it is taken; *tried* remembers the last ones."""
    if name not in taken:
        return name
    number = tried.get(name, 1) + 1
    while f"{name}_{number}" in taken:
        number += 1
    tried[name] = number
    return f"{name}_{number}"
