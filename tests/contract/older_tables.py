"""Tables as older versions had them, for the adapters that speak SQLite's SQL."""

from __future__ import annotations

import msgspec

from logbun_logging.event import AuditEvent

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

INSERT = (
    "INSERT INTO audit_logs (id, created_at, action, actor_id, tenant_id, metadata) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)


def old_events():
    """Return the events in an older table."""
    old = [
        AuditEvent(f"0190-{number}", f"2024-01-0{number}T00:00:00.000000Z", "old", "u", "t")
        for number in range(1, 4)
    ]
    old[0] = msgspec.structs.replace(old[0], tenant_id=None, metadata={"a": 1})
    return old


def old_row(event):
    """Return the values of :data:`INSERT` for an event."""
    metadata = event.metadata and '{"a": 1}'
    return (
        *(event.id, event.created_at, event.action, event.actor_id),
        *(event.tenant_id, metadata),
    )
