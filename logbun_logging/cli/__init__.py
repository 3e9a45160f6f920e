"""The command line: query a database, and look after a namespace's files beside a live service.

``events`` has the commands that talk to a database, ``folder`` those that talk to the WAL and the
DLQ, ``commands`` knows how arguments are read, and ``output`` how things are shown. Nothing here
is imported by the library.

Exit status: 0 for success, 1 if something went wrong, 2 if the command line is wrong.
"""

from __future__ import annotations

import typer

from logbun_logging.cli import events, folder

__all__ = ["app"]

app = typer.Typer(
    name="logbun",
    help="Query audit events, and look after the write-ahead log and the dead-letter queue.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
events.register(app)
folder.register(app)
