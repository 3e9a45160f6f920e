"""The names of ``logbun_logging.adapters`` that help to write an adapter of your own.

They are for a table whose columns are the event's fields, as text, with objects as JSON text.
"""

from __future__ import annotations

from logbun_logging.adapters._sql.table import COLUMNS, from_row, time_text, to_row

__all__ = ["COLUMNS", "from_row", "time_text", "to_row"]
