"""Which values must never be written: the ``redact`` option.

A rule is a key name (``"password"``), which matches that key at any depth, or a dotted path
(``"metadata.card.number"``) from the event's field down; ``*`` stands for one key. Names are
compared whole and without regard to case: ``token`` does not match ``tokenizer``. They are compared
as they are stored, without NUL and lone surrogates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from logbun_logging.errors import ConfigurationError
from logbun_logging.values import clean_text

__all__ = ["Redactor"]

#: A key with a character that case folding turns into ASCII letters, as the Kelvin sign into "k".
_FOLDS_TO_ASCII: Final = re.compile(
    b"(?:"
    + "|".join("\u017f\u212a\u00df\u1e9e\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06").encode()
    + rb')[^"]*":'
)

#: Fields that the pipeline itself needs: redacting them would break it.
PROTECTED: Final = frozenset({"id", "created_at", "action", "tenant_id"})


class Redactor:
    """Decides, for the path of a key, whether its value is to be replaced.

    Raises:
        ConfigurationError: a rule is not a non-empty string, or names a protected field.
    """

    def __init__(self, rules: Iterable[str]) -> None:
        names: set[str] = set()
        paths: list[tuple[str, ...]] = []
        for rule in rules:
            parts = tuple(_folded(rule).split(".")) if isinstance(rule, str) else ()
            if not all(parts) or not parts or parts in {(name,) for name in PROTECTED}:
                allowed = "key names or dotted paths, but not " + ", ".join(sorted(PROTECTED))
                raise ConfigurationError("redact", rule, allowed)
            if len(parts) == 1:
                names.add(parts[0])
            else:
                paths.append(parts)
        self._names = frozenset(names)
        self._paths = tuple(paths)
        last = sorted(names | {path[-1] for path in paths})
        keys = b"|".join(
            b'[^"]+' if name == "*" else re.escape(msgspec.json.encode(name)[1:-1]) for name in last
        )
        # Non-ASCII and escaped keys may be spelt in more than one way: those always look closer.
        self._hint = re.compile(b'"(?:' + keys + b')":', re.IGNORECASE)
        self._certain = all(
            name.isascii() and name.isprintable() and not set(name) & {'"', "\\"} for name in last
        )

    def may_match(self, payload: bytes) -> bool:
        """Tell cheaply whether an encoded event can contain a key to redact."""
        return (
            not self._certain
            or self._hint.search(payload) is not None
            or (not payload.isascii() and _FOLDS_TO_ASCII.search(payload) is not None)
        )

    def __call__(self, path: tuple[str, ...]) -> bool:
        """Tell whether the value at *path* (the event's field first) is to be replaced."""
        if _folded(path[-1]) in self._names:
            return True
        folded = tuple(map(_folded, path)) if self._paths else ()
        return any(_matches(rule, folded) for rule in self._paths)


def _folded(name: str) -> str:
    return clean_text(name).casefold()


def _matches(rule: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(rule) == len(path) and all(
        expected in ("*", part) for expected, part in zip(rule, path, strict=True)
    )
