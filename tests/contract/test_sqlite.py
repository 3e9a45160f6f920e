"""SQLite keeps the contract, and what is its own: one file, several processes, older tables."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import msgspec
import pytest

from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.event import AuditEvent
from logbun_logging.testing import AdapterContract

#: Tables that were made before some of the columns existed, by what is different in them.
OLDER_TABLES = {
    "fewer columns": (
        "CREATE TABLE audit_logs (id TEXT PRIMARY KEY, created_at TEXT NOT NULL, "
        "action TEXT NOT NULL, actor_id TEXT NOT NULL, tenant_id TEXT, metadata TEXT)"
    ),
    "no key": (
        "CREATE TABLE audit_logs (id TEXT, created_at TEXT, action TEXT, actor_id TEXT, "
        "tenant_id TEXT, metadata TEXT)"
    ),
    "columns in another order, and one of somebody else's": (
        "CREATE TABLE audit_logs (metadata TEXT, tenant_id TEXT, id TEXT NOT NULL PRIMARY KEY, "
        "actor_id TEXT, action TEXT, comment TEXT, created_at TEXT)"
    ),
}


class TestSQLiteAdapter(AdapterContract):
    @pytest.fixture
    def make_adapter(self, tmp_path):
        return lambda: SQLiteAdapter(tmp_path / "audit.db")

    @pytest.fixture(params=OLDER_TABLES.values(), ids=OLDER_TABLES)
    def older_table(self, request, tmp_path):
        def make():
            old = [
                AuditEvent(f"0190-{number}", f"2024-01-0{number}T00:00:00.000000Z", "old", "u", "t")
                for number in range(1, 4)
            ]
            old[0] = msgspec.structs.replace(old[0], tenant_id=None, metadata={"a": 1})
            with closing(sqlite3.connect(tmp_path / "audit.db")) as database, database:
                database.execute(request.param)
                for event in old:
                    values = (event.id, event.created_at, event.action, event.actor_id)
                    metadata = event.metadata and '{"a": 1}'
                    database.execute(
                        "INSERT INTO audit_logs (id, created_at, action, actor_id, tenant_id, "
                        "metadata) VALUES (?, ?, ?, ?, ?, ?)",
                        (*values, event.tenant_id, metadata),
                    )
            return old

        return make
