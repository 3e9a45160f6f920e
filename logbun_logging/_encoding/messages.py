"""Text for messages: without the secrets in it, and on one line.

Messages get into logs, callbacks and dead letters. A URL is shown as its scheme, its host and the
names of its parameters, a mapping as its keys. The value of an option with a secret's name is not
shown at all. So a password need not be recognised by its look. Only text that others have written,
such as a driver's error, has to be searched for one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MappingView
from typing import Final

__all__ = ["masked", "one_line", "printable", "shown"]

_MASK: Final = "***"

#: A longer value is cut, in characters.
_LONGEST: Final = 200

#: So much of a text of others is read, in characters; what is shown of it is far shorter.
_MOST: Final = 16_384

#: The names of options, keys and parameters whose values are secret.
_SECRET_NAME: Final = re.compile(
    r"pass|pwd|token|secret|jwt|credential|(?:^|[._-])(?:auth|key)|api_?key", re.IGNORECASE
)

#: A port that is no number: the password of a URL without a host.
_PASSWORD: Final = re.compile(r"^([^/:\[]*:)(?!\d*(?:/|$))[^/]+")

_PARAMETER: Final = re.compile(r"([A-Za-z_][\w-]{0,40})=.*", re.DOTALL)

#: In the text of others: a URL with something before its host, or what looks like that without a
#: scheme; a name that is secret and its value; what headers hold. Whatever is looked for at each
#: character is bounded, or a text would take time that grows with its square.
_IN_TEXT: Final = re.compile(
    r"(?P<url>[a-z][a-z0-9+.-]{0,30}://)[^\n]{0,2000}@"
    r"|(?P<header>\b(?:(?:proxy-)?authorization|(?:set-)?cookie)['\"]?\s{0,9}[:=])[^\n]*"
    r"|(?P<name>(?:\b|_)(?:[\w-]{0,40}[_-])?(?:auth)?(?:pass(?:word|wd|phrase|code)?|pwd|token|secret"
    r"|jwt|otp|credentials?|(?:api|access|private|signing|encryption)[_-]?key)"
    r"['\"]?\s{0,9}(?:=|:|%3D)\s{0,9}|\b(?:auth|key|sig)=)(?:'[^'\n]*'?|\"[^\"\n]*\"?|[^'\"&\s,})]+)"
    r"|(?P<scheme>\b(?:Basic|Bearer)\s+)[^\s'\",]+"
    r"|(?P<user>\b[\w.%+-]{1,64}:)[^\s@/'\"]{1,200}@(?=[\w\[])",
    re.IGNORECASE,
)


def shown(option: str, value: object) -> str:
    """Return the value of *option* for a message."""
    if value is not None and _SECRET_NAME.search(option.rpartition(".")[2]):
        return _MASK
    try:
        text = _shown(value)
    except Exception:  # a hostile __repr__ must not hide the message
        text = f"<unprintable {type(value).__name__}>"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def masked(text: str) -> str:
    """Return a text that others have written, without what looks like a secret.

    Cut it afterwards: what is left of a secret that was cut does not look like one any more.
    """
    return _IN_TEXT.sub(_without, text[:_MOST])


def _without(found: re.Match[str]) -> str:
    kind = found.lastgroup or ""
    return f"{found[kind]}{_MASK}{'@' if kind in {'url', 'user'} else ''}"


def one_line(value: object, longest: int = _LONGEST) -> str:
    """Return *value* as printable text on one line, of about *longest* characters at most.

    Control characters, line breaks and marks that turn the direction of text are escaped, and what
    looks like a secret is masked.
    """
    try:
        text = masked(str(value))
    except Exception:  # a hostile __str__ must not hide the message
        text = f"<unprintable {type(value).__name__}>"
    if len(text) > longest:
        text = text[: longest - 3] + "..."
    return printable(text)


def printable(text: str) -> str:
    """Return *text* with all escaped that a terminal, or a reader of lines, takes for an order."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_shown(key)}: ..." for key in value) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, bytes | bytearray):
        return "b" + repr(_address(value.decode("latin-1")))
    if isinstance(value, str | os.PathLike):
        return repr(_address(os.fsdecode(value)))
    if isinstance(value, MappingView | memoryview):
        return f"<{type(value).__name__}>"
    return masked(repr(value))


def _address(text: str) -> str:
    """Return *text* without what a URL, or something like one, may hide in it."""
    if "://" not in text and re.search("[=:]", text) and _SECRET_NAME.search(text):
        return _MASK
    scheme, colons, rest = text.rpartition("://") if "://" in text else ("", "", text)
    _, at, rest = rest.rpartition("@")
    place, question, parameters = rest.partition("?")
    place, fragment, _ = place.partition("#")
    place = _PASSWORD.sub(rf"\1{_MASK}", place) if colons else masked(place)
    names = (_PARAMETER.fullmatch(part) for part in re.split("[&;]", parameters))
    return "".join(
        (
            scheme + colons if re.fullmatch(r"[\w+.-]*", scheme) else _MASK + colons,
            _MASK + at if at else "",
            place,
            fragment and fragment + _MASK,
            question,
            "&".join(f"{found[1]}={_MASK}" if found else _MASK for found in names)
            if question
            else "",
        )
    )
