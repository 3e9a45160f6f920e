"""The tables of the documentation that are made of the source.

``python -m tests.docs_tables`` writes them into the pages, between the two comments that name a
table. A test fails where a page is not up to date.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from logbun_logging.options import TrailOptions, keywords
from logbun_logging.options.checks import bounds, is_group, kinds

ROOT: Final = Path(__file__).parents[1]

_UNITS: Final = {"PiB": 2**50, "TiB": 2**40, "GiB": 2**30, "MiB": 2**20}

#: Defaults that the source does not show in the form in which a user writes them.
_DEFAULTS: Final = {"data_dir": '``".logbun"``', "redact": "the usual names of secrets"}


def documented() -> dict[str, dict[str, str]]:
    """Return the text below each option in the source, by the name of its class and its own."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(keywords)).body:
        if isinstance(node, ast.ClassDef):
            texts = found[node.name] = {}
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    assert isinstance(text.value, ast.Constant)
                    texts[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return found


def number(value: float) -> str:
    for unit, size in _UNITS.items():
        if value and value % size == 0:
            return f"{value // size:,} {unit}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def code(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return f"``{text}``"


def default_of(name: str, field: msgspec.structs.FieldInfo) -> str:
    if name in _DEFAULTS:
        return f"Default: {_DEFAULTS[name]}."
    if field.required:
        return "Required."
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory()  # type: ignore[operator, misc]
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return f"Default: {number(value) if plain else code(value)}."


def allowed_of(kind: Any) -> str:
    """Return in words what *kind* allows, or nothing if the type says it."""
    inner, meta = bounds(kind)
    if get_origin(inner) is Literal:
        return ", ".join(map(code, get_args(inner)))
    if meta.pattern is not None:
        return str(meta.description)
    more = ", or ``None``" if NoneType in get_args(kind) else ""
    if get_origin(inner) is Mapping:
        _, meta = bounds(get_args(inner)[1])
        more = " for each"
    return "" if meta.ge is None else f"{number(meta.ge)} to {number(meta.le)}{more}"


def facts(name: str, field: msgspec.structs.FieldInfo, kind: Any) -> str:
    """Return how the text of an option has to end: its default, and what is allowed."""
    allowed = allowed_of(kind)
    return default_of(name, field) + (f" Allowed: {allowed}." if allowed else "")


def options() -> Iterator[tuple[str, str, str]]:
    """Yield each option with its text in the source, and how that has to end."""
    texts = documented()
    top = texts["CommonOptionsDict"] | texts["TrailOptionsDict"]
    for field in msgspec.structs.fields(TrailOptions):
        kind = kinds(TrailOptions)[field.name]
        if is_group(kind):
            inner = texts[f"{kind.__name__}Dict"]
            for one in msgspec.structs.fields(kind):
                end = facts(one.name, one, kinds(kind)[one.name])
                yield f"{field.name}.{one.name}", inner[one.name], end
        else:
            yield field.name, top[field.name], facts(field.name, field, kind)


def options_table() -> str:
    lines = ["| option | default | allowed | meaning |", "|---|---|---|---|"]
    for name, text, end in options():
        meaning = " ".join(text.removesuffix(end).split())
        default, _, allowed = end.removesuffix(".").partition(". Allowed: ")
        default = default.removesuffix(".").removeprefix("Default: ").replace("Req", "req")
        row = f"| `{name}` | {default} | {allowed} | {meaning} |"
        lines.append(row.replace("``", "`"))
    return "\n".join(lines)


#: What makes each table, by the name that the pages use.
TABLES: Final[Mapping[str, Callable[[], str]]] = {"options": options_table}

_PLACE: Final = r"(<!-- table: {name}[^>]*-->\n).*?(<!-- end of table -->)"


def updated(page: str) -> str:
    """Return the text of *page* with each table as the source has it."""
    for name, make in TABLES.items():
        place = re.compile(_PLACE.format(name=name), re.DOTALL)
        page = place.sub(lambda found, make=make: f"{found[1]}\n{make()}\n\n{found[2]}", page)
    return page


def pages() -> list[Path]:
    return [page for page in (ROOT / "docs").rglob("*.md") if "<!-- table: " in page.read_text()]


if __name__ == "__main__":
    for one in pages():
        before = one.read_text()
        after = updated(before)
        if after != before:
            one.write_text(after)
            print(f"updated {one.relative_to(ROOT)}")
