"""Tables as an older version, or somebody by hand, may have made them in ClickHouse."""

from __future__ import annotations

from logbun_logging.testing import samples

OLDER_TABLES = {
    "fewer columns": (
        "CREATE TABLE audit_logs (id String, created_at DateTime64(6, 'UTC'), action String, "
        "actor_id String, tenant_id String, metadata Nullable(String)) "
        "ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(created_at) "
        "ORDER BY (tenant_id, created_at, id)"
    ),
    "an engine that keeps copies, and a column of somebody else's": (
        "CREATE TABLE audit_logs (metadata Nullable(String), comment String, "
        "tenant_id String, id String, actor_id String, action String, "
        "created_at DateTime64(6, 'UTC')) ENGINE = MergeTree ORDER BY created_at"
    ),
}


def make_older_table(run, statement):
    """Make the table through *run*, with two rows, and return these as events."""
    events = [
        samples.encode("old", tenant_id="t", metadata={"a": 1}),
        samples.encode("old", actor_id="u"),
    ]
    run(statement)
    for event in events:
        tenant = f"'{event.tenant_id or ''}'"
        metadata = "NULL" if event.metadata is None else """'{"a": 1}'"""
        run(
            "INSERT INTO audit_logs (id, created_at, action, actor_id, tenant_id, metadata) "
            f"SELECT '{event.id}', parseDateTime64BestEffort('{event.created_at}', 6, 'UTC'), "
            f"'{event.action}', '{event.actor_id}', {tenant}, {metadata}"
        )
    return events
