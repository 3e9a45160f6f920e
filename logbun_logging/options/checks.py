"""One value against one type: a message that names the option, the value and what is allowed.

:func:`check` reads the type as it stands beside a field (``Annotated[int, Meta(ge=1, le=100)]``,
``Literal["always", "never"]``), so a bound is written once. Called for the options of a trail and
for those of an adapter. What needs more than a type is in ``parsing``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct

from logbun_logging.errors import ConfigurationError
from logbun_logging.options.keywords import EventCallback

__all__ = ["allowed_by", "bounds", "check", "is_group", "kinds"]


@cache
def kinds(group: type[Struct]) -> dict[str, Any]:
    """Return the type of each option of *group*, with its bounds."""
    return get_type_hints(group, include_extras=True)


def is_group(kind: Any) -> bool:
    """Tell whether an option of the type *kind* is a group of options."""
    return isinstance(kind, type) and issubclass(kind, Struct)


def check(option: str, value: Any, kind: Any) -> None:
    """Check that *value* is one of those that the type *kind* allows.

    A type that says nothing about its values allows all of them.

    Raises:
        ConfigurationError: it is not; the message names *option*.
    """
    allowed = allowed_by(kind)
    if allowed is not None and not _fits(value, kind):
        raise ConfigurationError(option, value, allowed)


def allowed_by(kind: Any) -> str | None:
    """Return in words which values the type *kind* allows; None if it does not restrict them."""
    kind, meta = bounds(kind)
    if meta.pattern is not None:
        return meta.description
    if (kind is int or kind is float) and meta.ge is not None and meta.le is not None:
        noun = "a whole number" if kind is int else "a number"
        return f"{noun} from {meta.ge:,} to {meta.le:,}"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if kind is bool:
        return "True or False"
    if kind is str:
        return "a string"
    return "a callable" if _is_callable(kind) else None


def _fits(value: Any, kind: Any) -> bool:
    if value is None:
        return NoneType in get_args(kind)
    kind, meta = bounds(kind)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if _is_callable(kind):
        return callable(value)
    if kind is int or kind is float:
        kinds = int if kind is int else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        above = meta.ge is None or value >= meta.ge
        return above and (meta.le is None or value <= meta.le)
    if not isinstance(value, kind):
        return False
    return meta.pattern is None or re.fullmatch(meta.pattern, value) is not None


def bounds(kind: Any) -> tuple[Any, Meta]:
    """Return the type itself, without "or None", and its bounds."""
    if get_origin(kind) in {Union, UnionType}:
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Annotated:
        kind, meta = get_args(kind)
        return kind, meta
    return kind, Meta()


def _is_callable(kind: Any) -> bool:
    return get_origin(kind) is Callable or kind is EventCallback
