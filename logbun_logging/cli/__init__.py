"""The command line: query a database, and look after a namespace's files beside a live service.

``events`` has the commands that talk to a database, ``folder`` those that talk to the WAL and the
DLQ, ``commands`` knows how arguments are read, and ``output`` how things are shown. Nothing here
is imported by the library.

Exit status: 0 for success, 1 if something went wrong, 2 if the command line is wrong.
"""

from __future__ import annotations

from typing import Annotated

import typer

from logbun_logging import __version__
from logbun_logging.cli import events, folder

__all__ = ["app"]

app = typer.Typer(
    name="logbun",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"logbun {__version__}")
        raise typer.Exit


@app.callback()
def logbun(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Query audit events, and look after the write-ahead log and the dead-letter queue."""


events.register(app)
folder.register(app)
