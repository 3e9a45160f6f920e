"""Which values must never be written: the ``redact`` option.

A rule is a key name (``"password"``), which matches that key at any depth, or a dotted path
(``"metadata.card.number"``) from the event's field down; ``*`` stands for one key. A path also
matches keys that hold dots themselves, as OpenTelemetry's do: the whole of the rule as one key, or
``card.number`` within the metadata. Names are compared whole:
``token`` does not match ``tokenizer``. Case, the width of letters, invisible characters and spaces
around a name make no difference. :data:`DEFAULT_RULES` are always among the rules.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final

from logbun_logging.errors import ConfigurationError
from logbun_logging.values import clean_text

__all__ = ["DEFAULT_RULES", "PROTECTED", "Redactor"]

#: Fields that the pipeline itself needs: redacting them would break it.
PROTECTED: Final = frozenset({"id", "created_at", "action", "tenant_id"})

#: Characters of a name that are compared.
_LONGEST: Final = 8_192

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
                allowed = "key names or dotted paths, but not " + ", ".join(sorted(PROTECTED))
                raise ConfigurationError("redact", rule, allowed)
            names.add(".".join(parts))
            if len(parts) > 1:
                paths.append(parts)
        self._names = frozenset(names)
        self._paths = tuple(paths)
        self._ends = frozenset(path[-1] for path in paths)

    def concerns(self, key: str) -> bool:
        """Tell whether a value under *key* may have to be replaced, wherever it is."""
        name = _folded(key)
        return name in self._names or self._ends_a_path(name)

    def __call__(self, path: tuple[str, ...]) -> bool:
        """Tell whether the value at *path* (the event's field first) is to be replaced."""
        name = _folded(path[-1])
        if name in self._names:
            return True
        if not self._ends_a_path(name):
            return False
        parts = [part for key in path for part in _folded(key).split(".")]
        return any(_matches(rule, parts) for rule in self._paths)

    def _ends_a_path(self, name: str) -> bool:
        ends = self._ends
        return bool(ends) and ("*" in ends or name.rpartition(".")[2] in ends)


def _folded(name: str) -> str:
    text = clean_text(name[:_LONGEST])
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        if not text.isprintable():
            text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return text.casefold().strip()


def _matches(rule: tuple[str, ...], parts: list[str]) -> bool:
    return len(rule) == len(parts) and all(
        expected in ("*", part) for expected, part in zip(rule, parts, strict=True)
    )
