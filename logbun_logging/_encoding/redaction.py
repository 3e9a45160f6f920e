"""Which values must never be written: the ``redact`` option.

A rule is a key name (``"password"``), which matches that key at any depth, or a dotted path
(``"metadata.card.number"``) from the event's field down; ``*`` stands for one key. A path also
matches keys that hold dots themselves, as OpenTelemetry's do: the whole of the rule as one key, or
``card.number`` within the metadata. Names are compared whole:
``token`` does not match ``tokenizer``. Case, the width of letters, invisible characters and spaces
around a name make no difference. :data:`DEFAULT_RULES` are always among the rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from logbun_logging._encoding.values import clean_text
from logbun_logging.errors import ConfigurationError

__all__ = ["DEFAULT_RULES", "PROTECTED", "Redactor"]

#: Fields that the pipeline itself needs: redacting them would break it.
PROTECTED: Final = frozenset({"id", "created_at", "action", "tenant_id"})

#: Characters of a name that are compared.
_LONGEST: Final = 8_192

#: A longer name keeps the width of its letters: NFKC takes quadratic time for combining marks, and
#: makes 18 characters of one.
_LONGEST_FOLDED: Final = 128

#: What nobody sees in a name: Unicode's Default_Ignorable_Code_Point.
_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)

#: Names of secrets in snake_case. Each stands for its kebab-case and camelCase as well.
_SECRETS: Final = (
    # HTTP headers
    *("authorization", "proxy_authorization", "cookie", "set_cookie"),
    *("x_api_key", "x_auth_token", "x_access_token", "x_csrf_token", "x_xsrf_token"),
    # passwords
    *("password", "passwd", "pwd", "passphrase", "passcode", "password_hash", "hashed_password"),
    *("password1", "password2", "new_password", "old_password", "current_password"),
    *("password_confirmation", "confirm_password", "db_password", "user_password"),
    # tokens
    *("token", "access_token", "refresh_token", "id_token", "auth_token", "bearer_token"),
    *("api_token", "session_token", "reset_token", "csrf_token", "csrf_middleware_token", "jwt"),
    # keys
    *("secret", "client_secret", "app_secret", "api_secret", "shared_secret", "webhook_secret"),
    *("api_key", "secret_key", "private_key", "signing_key", "encryption_key", "access_key"),
    *("secret_access_key", "aws_secret_access_key", "aws_session_token"),
    # one-time codes and cards
    *("otp", "totp", "otp_secret", "totp_secret", "one_time_password", "cvv", "cvc"),
    *("recovery_codes", "backup_codes"),
)

#: Where OpenTelemetry keeps headers: flat keys with dots in them.
_HEADER_ATTRIBUTES: Final = (
    "http.request.header.authorization",
    "http.request.header.proxy-authorization",
    "http.request.header.cookie",
    "http.request.header.x-api-key",
    "http.response.header.set-cookie",
)

#: What is redacted unless ``redact=[]`` switches everything off.
DEFAULT_RULES: Final = tuple(
    dict.fromkeys(
        [
            *(name.replace("_", joint) for name in _SECRETS for joint in ("_", "-", "")),
            *_HEADER_ATTRIBUTES,
        ]
    )
)


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
                needed = " or ".join(sorted(PROTECTED))
                allowed = f"a key or a dotted path without an empty part, except {needed}"
                raise ConfigurationError("redact", rule, allowed)
            names.add(".".join(parts))
            if len(parts) > 1:
                paths.append(parts)
        self._names = frozenset(names)
        self._paths = tuple(paths)
        self._ends = frozenset(path[-1] for path in paths)
        self._most_parts = max(map(len, paths), default=0)

    def __eq__(self, other: object) -> bool:
        """Tell whether *other* has the same rules."""
        if not isinstance(other, Redactor):
            return NotImplemented
        return self._names == other._names and set(self._paths) == set(other._paths)

    def __hash__(self) -> int:
        return hash(self._names)

    def concerns(self, key: str) -> bool:
        """Tell whether a value under *key* may have to be replaced, wherever it is."""
        name = _folded(key)
        return name in self._names or self._ends_a_path(name)

    def __call__(self, path: tuple[str, ...]) -> bool:
        """Tell whether the value at *path* (the event's field first) is to be replaced."""
        name = _folded(path[-1])
        if name in self._names:
            return True
        most = self._most_parts
        if len(path) > most or not self._ends_a_path(name):
            return False
        parts = [part for key in path for part in _folded(key).split(".", most)]
        return any(_matches(rule, parts) for rule in self._paths)

    def _ends_a_path(self, name: str) -> bool:
        ends = self._ends
        return bool(ends) and ("*" in ends or name.rpartition(".")[2] in ends)


def _folded(name: str) -> str:
    return _compared(name[:_LONGEST])


@lru_cache(128)  # the names on the way to a value are asked about once for each value
def _compared(name: str) -> str:
    text = clean_text(name)
    if not text.isascii():
        text = _INVISIBLE.sub("", text)
        if len(text) <= _LONGEST_FOLDED:
            text = unicodedata.normalize("NFKC", text)
    return text.casefold().strip()


def _matches(rule: tuple[str, ...], parts: list[str]) -> bool:
    return len(rule) == len(parts) and all(
        expected in ("*", part) for expected, part in zip(rule, parts, strict=True)
    )
