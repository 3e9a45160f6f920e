"""How the command line reads its arguments: an option that counts once must be given once."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

__all__ = ["Command", "Raw", "Yes"]

Raw = Annotated[
    bool, typer.Option("--raw", help="With csv: write cells verbatim. Not safe for spreadsheets.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Command(TyperCommand):
    """A command that refuses an option given twice, of which the parser would take the last.

    ``--tenant a --tenant b`` must not quietly be the question for b.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments.

        Raises:
            typer.BadParameter: something is wrong with them.
        """
        parsed: Any = self.make_parser(ctx).parse_args(args=[*args])
        order = parsed[2]
        for param in order:
            if not param.multiple and param.nargs == 1 and order.count(param) > 1:
                raise typer.BadParameter("give it once", ctx=ctx, param=param)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if not error.message and error.param is not None and error.param.envvar:
                error.message = f"Give it, or set the variable {error.param.envvar}."
            raise
