"""The table in a SQLite file: whether it is as it should be, and making it so.

sqlite-utils reads what an older table has. It is imported only where there is one: where pandas is
installed it imports that, which takes a second and 70 MiB, and cannot be done any more when the
interpreter ends.

A file that has no other tables is ours, and so is its ``user_version``. It counts the changes that
an older version of this library could not live with; an added column is none.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from logbun_logging.adapters._sql import table
from logbun_logging.errors import AdapterUnavailableError

__all__ = ["SCHEMA_VERSION", "migrate"]

SCHEMA_VERSION: Final = 1

_OTHER_TABLES: Final = (
    "SELECT count(*) FROM sqlite_master "
    f"WHERE type = 'table' AND name != '{table.TABLE}' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the table up to date; several processes may do so at once.

    Raises:
        AdapterUnavailableError: a newer version of this library has made the file.
    """
    if _is_up_to_date(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _has_table(connection):
            _add_what_is_missing(connection)
        else:
            connection.execute(table.CREATE_TABLE)
        for name, what in table.INDEXES.items():
            connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {what}")
        if _is_ours(connection):
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _has_table(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table.TABLE])
    return found.fetchone() is not None


def _add_what_is_missing(connection: sqlite3.Connection) -> None:
    import sqlite_utils  # noqa: PLC0415 - see above; forks wait for calls under way, so for this

    found = sqlite_utils.Database(connection).table(table.TABLE)
    present = found.columns_dict
    for name in table.COLUMNS:
        if name not in present:
            connection.execute(table.add_column(name))
    if found.pks != ["id"]:
        connection.execute(table.unique_id())


def _is_up_to_date(connection: sqlite3.Connection) -> bool:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    ours = _is_ours(connection)
    if ours and version > SCHEMA_VERSION:
        raise AdapterUnavailableError(
            f"a newer version of logbun_logging has made the file (user_version {version}, this "
            f"one knows {SCHEMA_VERSION}): upgrade this one"
        )
    columns = dict(connection.execute(f"SELECT name, pk FROM pragma_table_info('{table.TABLE}')"))
    found = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", [table.TABLE]
    )
    indexes = {name for (name,) in found}
    unique = table.UNIQUE_ID in indexes or [name for name, place in columns.items() if place] == [
        "id"
    ]
    return (
        columns.keys() >= set(table.COLUMNS)
        and indexes >= table.INDEXES.keys()
        and unique
        and (version == SCHEMA_VERSION or not ours)
    )


def _is_ours(connection: sqlite3.Connection) -> bool:
    return not connection.execute(_OTHER_TABLES).fetchone()[0]
