"""How the command line shows things: tables for people, JSON and CSV for programs, plain errors."""

from __future__ import annotations

import csv
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, ParamSpec, TypeVar

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from logbun_logging.errors import ConfigurationError, LogbunError, QueryError
from logbun_logging.event import FIELDS, AuditEvent

__all__ = [
    "Format",
    "LineFormat",
    "friendly",
    "show_events",
    "show_json",
    "show_line",
    "show_table",
    "warn",
]

P = ParamSpec("P")
R = TypeVar("R")

#: Columns of a terminal that nobody looks at: a pipe gets its lines whole.
_WIDE: Final = 250

#: The columns of a table of events. In a narrow terminal the last ones are left out, down to
#: _FEWEST.
_SHOWN: Final = (
    "created_at",
    "tenant_id",
    "action",
    "actor_id",
    "entity_type",
    "entity_id",
    "outcome",
    "ip_address",
)
_FEWEST: Final = 4


class Format(StrEnum):
    """How events are written."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"


class LineFormat(StrEnum):
    """How events are written as they arrive."""

    TEXT = "text"
    NDJSON = "ndjson"


def friendly(command: Callable[P, R]) -> Callable[P, R]:
    """Let the errors that *command* may meet be one line and an exit status, not a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **keywords: P.kwargs) -> R:
        try:
            return command(*args, **keywords)
        except (ConfigurationError, QueryError) as error:
            raise _failure(str(error), 2) from error
        except ModuleNotFoundError as error:
            raise _failure(f"{error}; install the extra of that database", 1) from error
        except BrokenPipeError:
            raise  # whoever read has seen enough: click ends quietly
        except (LogbunError, OSError) as error:
            raise _failure(str(error), 1) from error
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return run


def _failure(message: str, code: int) -> typer.Exit:
    warn(f"logbun: {message}")
    return typer.Exit(code)


def warn(message: str) -> None:
    """Write a line for people to stderr."""
    typer.echo(_printable(message), err=True)


def show_events(events: Iterable[AuditEvent], form: Format) -> int:
    """Write events to stdout as they come, a table excepted; return how many there were."""
    if form is Format.NDJSON:
        return _each(events, lambda event: _write(msgspec.json.encode(event)))
    if form is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(FIELDS)
        return _each(events, lambda event: writer.writerow(_cells(event)))
    found = list(events)
    if form is Format.JSON:
        _write(msgspec.json.format(msgspec.json.encode(found)))
    elif found:
        columns = {name: [_cell(getattr(event, name)) for event in found] for name in _SHOWN}
        names = [name for name in _SHOWN if any(columns[name])]
        fitting = _fitting(names, columns)
        show_table(fitting, zip(*(columns[name] for name in fitting), strict=True))
        if fitting != names:
            left_out = ", ".join(names[len(fitting) :])
            warn(f"left out, for want of room: {left_out}; see --format")
    return len(found)


def show_json(value: object) -> None:
    """Write one value to stdout as JSON."""
    _write(msgspec.json.format(msgspec.json.encode(value)))


def show_line(line: str) -> None:
    """Write a line to stdout, at once."""
    typer.echo(_printable(line))


def show_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to stdout."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(_title(name), overflow="fold", no_wrap=name == "created_at")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    _console().print(table)


def _console() -> Console:
    console = Console(soft_wrap=False)
    return console if console.is_terminal else Console(width=_WIDE)


def _title(name: str) -> str:
    return name.replace("_id", "")


def _fitting(names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the first of *names*: as many as fit into the terminal, or the fewest."""
    fitting = list(names)
    widths = {name: max(map(cell_len, [_title(name), *columns[name]])) for name in names}
    room = _console().width
    while len(fitting) > _FEWEST and sum(widths[name] + 2 for name in fitting) - 2 > room:
        fitting.pop()
    return fitting


def _each(events: Iterable[AuditEvent], write: Callable[[AuditEvent], Any]) -> int:
    count = 0
    for count, event in enumerate(events, 1):  # noqa: B007 - the count after the last is asked for
        write(event)
    return count


def _write(data: bytes) -> None:
    sys.stdout.write(data.decode() + "\n")


def _cells(event: AuditEvent) -> list[str]:
    values = [getattr(event, name) for name in FIELDS]
    return [
        msgspec.json.encode(value).decode() if isinstance(value, dict) else value or ""
        for value in values
    ]


def _cell(value: object) -> str:
    return "" if value is None else _printable(str(value))


def _printable(text: str) -> str:
    """Return *text* without what a terminal would take for an order: events are not trusted."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
