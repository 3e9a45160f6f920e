"""``python -m logbun_logging``, and the console script ``logbun``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from logbun_logging.cli import app  # noqa: PLC0415 - an extra of the package
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in {"typer", "rich"}:
            raise
        need = "install the extra 'cli' of logbun-logging"
        sys.exit(f"logbun: the command line needs {missing}, which is not installed: {need}")
    app(prog_name="logbun")


if __name__ == "__main__":
    main()
