"""How the command line shows things: tables for people, JSON and CSV for programs, plain errors."""

from __future__ import annotations

import csv
import functools
import re
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

from logbun_logging._encoding.messages import printable
from logbun_logging.errors import ConfigurationError, LogbunError, QueryError
from logbun_logging.event import FIELD_NAMES, AuditEvent

__all__ = [
    "Format",
    "LineFormat",
    "confirm",
    "counted",
    "friendly",
    "require_terminal",
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

#: What a terminal takes for an order, or a program for the end of a line: controls (C0, DEL, C1),
#: line and paragraph separators, and marks that turn the direction of text.
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

#: What makes a cell a formula for a spreadsheet; the last four are the wide forms of the first.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


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
    typer.echo(printable(message), err=True)


def require_terminal() -> None:
    """Refuse to go on where nobody can be asked.

    Raises:
        typer.Exit: stdin is no terminal.
    """
    if not sys.stdin.isatty():
        raise _failure("this removes events for good, and nobody can be asked: give --yes", 2)


def confirm(question: str) -> None:
    """Ask before events are removed for good.

    Raises:
        typer.Abort: the answer is no.
        typer.Exit: nobody can be asked.
    """
    require_terminal()
    typer.confirm(question, abort=True, err=True)


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts: ``1 file``, ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show_events(events: Iterable[AuditEvent], form: Format, *, raw: bool = False) -> int:
    """Write events to stdout as they come, a table excepted; return how many there were.

    Args:
        events: the events.
        form: how they are written.
        raw: write the cells of CSV verbatim, which a spreadsheet may take for formulas.

    Raises:
        ConfigurationError: *raw* with another format.
    """
    if raw and form is not Format.CSV:
        raise ConfigurationError("--raw", raw, "--raw with --format csv only")
    if form is Format.NDJSON:
        return _each(events, lambda event: _write(_json(_fields(event))))
    if form is Format.CSV:
        # Python 3.11 and 3.12 leave a bare carriage return unquoted, and cannot read it back.
        quoting: Final = csv.QUOTE_ALL if raw else csv.QUOTE_MINIMAL
        writer = csv.writer(sys.stdout, lineterminator="\n", quoting=quoting)
        writer.writerow(FIELD_NAMES)
        return _each(events, lambda event: writer.writerow(_cells(event, raw=raw)))
    found = list(events)
    if form is Format.JSON:
        show_json(list(map(_fields, found)))
    elif found:
        columns = {name: [_cell(getattr(event, name)) for event in found] for name in _SHOWN}
        names = [name for name in _SHOWN if any(columns[name])]
        fitting = _fitting(names, columns)
        show_table(fitting, zip(*(columns[name] for name in fitting), strict=True))
        if fitting != names:
            left_out = ", ".join(names[len(fitting) :])
            warn(f"the terminal is too narrow for {left_out}: see --format")
    return len(found)


def show_json(value: object) -> None:
    """Write one value to stdout as JSON."""
    _write(msgspec.json.format(_json(value)))


def show_line(line: str) -> None:
    """Write a line to stdout, at once."""
    typer.echo(printable(line))


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


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fields(event: AuditEvent) -> dict[str, Any]:
    """Return every field: encoded as it is, an event leaves out those that are empty."""
    return msgspec.structs.asdict(event)


def _json(value: object) -> str:
    """Return *value* as JSON in which no character is an order to a terminal."""
    text = msgspec.json.encode(value).decode()
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _cells(event: AuditEvent, *, raw: bool) -> list[str]:
    cells = []
    for value in _fields(event).values():
        if isinstance(value, dict):
            cells.append(_json(value))
        else:
            cells.append(value or "" if raw else _safe_cell(value or ""))
    return cells


def _safe_cell(text: str) -> str:
    """Return *text* on one line, and so that no spreadsheet takes it for a formula."""
    escaped = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return f"'{escaped}" if text.startswith(_FORMULA) else escaped


def _cell(value: object) -> str:
    return "" if value is None else printable(str(value))
