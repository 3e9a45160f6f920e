"""SQLite, in a file or in memory."""

from logbun_logging.adapters.sqlite.adapter import SQLiteAdapter

__all__ = ["SQLiteAdapter"]
