"""What is sent to a cluster. There is none here: the real parser reads it, and nobody runs it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from logbun_logging.adapters import ClickHouseAdapter
from logbun_logging.adapters.clickhouse.table import COLUMNS, Layout

if importlib.util.find_spec("chdb") is None:
    pytest.skip("chdb is missing: pip install -e '.[dev-all]'", allow_module_level=True)

CLUSTER = Layout(database="audit", cluster="main")
SINGLE = Layout(database="audit")


@pytest.fixture(scope="module")
def parse(tmp_path_factory):
    """Return a function that has the engine read a statement, and returns it in its own form."""
    adapter = ClickHouseAdapter(path=tmp_path_factory.mktemp("chdb"))
    adapter.init()

    def formatted(statement):
        query = "SELECT formatQuerySingleLine({statement:String})"
        ((text,),) = adapter._query(query, {"statement": statement})
        return text

    yield formatted
    adapter.close()


def test_the_rows_are_in_replicated_tables_on_every_server(parse):
    local, _ = CLUSTER.create_tables(retention_days=400)
    text = parse(local)
    assert text.startswith("CREATE TABLE IF NOT EXISTS audit.audit_logs_local ON CLUSTER main (")
    engine = (
        "ENGINE = ReplicatedReplacingMergeTree"
        "('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')"
    )
    assert engine in text
    assert "PARTITION BY toYYYYMM(created_at) ORDER BY (tenant_id, created_at, id)" in text
    assert "TTL created_at + toIntervalDay(400) SETTINGS fsync_after_insert = 1" in text
    for name in COLUMNS:
        assert f"`{name}` " in text


def test_a_distributed_table_sends_each_tenant_to_one_shard(parse):
    _, distributed = CLUSTER.create_tables(retention_days=None)
    assert parse(distributed) == (
        "CREATE TABLE IF NOT EXISTS audit.audit_logs ON CLUSTER main AS audit.audit_logs_local "
        "ENGINE = Distributed('main', 'audit', 'audit_logs_local', cityHash64(tenant_id))"
    )


def test_without_a_cluster_there_is_one_table(parse):
    (statement,) = SINGLE.create_tables(retention_days=None)
    text = parse(statement)
    assert text.startswith("CREATE TABLE IF NOT EXISTS audit.audit_logs (")
    assert "ENGINE = ReplacingMergeTree PARTITION BY" in text
    assert "non_replicated_deduplication_window = 1000" in text
    assert "ON CLUSTER" not in text
    assert "TTL" not in text


def test_what_is_missing_is_added_to_both_tables(parse):
    old = [name for name in COLUMNS if name not in {"outcome", "content_hash"}]
    statements = [parse(statement) for statement in CLUSTER.add_columns(old)]
    added = (
        "(ADD COLUMN IF NOT EXISTS `outcome` LowCardinality(Nullable(String))), "
        "(ADD COLUMN IF NOT EXISTS `content_hash` Nullable(String))"
    )
    assert statements == [
        f"ALTER TABLE audit.{table} ON CLUSTER main {added}"
        for table in ("audit_logs_local", "audit_logs")
    ]
    assert CLUSTER.add_columns(COLUMNS) == []


def test_retention_reaches_every_server(parse):
    assert parse(CLUSTER.create_database()) == "CREATE DATABASE IF NOT EXISTS audit ON CLUSTER main"
    assert parse(CLUSTER.drop_partition("202601")) == (
        "ALTER TABLE audit.audit_logs_local ON CLUSTER main (DROP PARTITION ID '202601')"
    )
    assert parse(CLUSTER.delete("202601", "tenant_id = 't'")) == (
        "DELETE FROM audit.audit_logs_local ON CLUSTER main IN PARTITION ID '202601' "
        "WHERE tenant_id = 't'"
    )
    (ttl,) = CLUSTER.modify_ttl(30, "Replicated... TTL created_at + toIntervalDay(300) SETTINGS a")
    assert parse(ttl) == (
        "ALTER TABLE audit.audit_logs_local ON CLUSTER main "
        "(MODIFY TTL created_at + toIntervalDay(30))"
    )


@pytest.mark.parametrize(
    "partition",
    [
        "",
        "all",
        "101",
        "2026-01",
        "202613",
        "202600",
        "20260101",
        "202601'",
        "202601\n",
        "20260\u0661",
    ],
)
def test_nothing_but_a_month_is_dropped(partition):
    with pytest.raises(ValueError, match="not the partition of a month"):
        SINGLE.drop_partition(partition)
    with pytest.raises(ValueError, match="not the partition of a month"):
        SINGLE.delete(partition, "1")


def test_an_insert_into_a_cluster_waits_for_the_shards():
    settings = ClickHouseAdapter(host="db", cluster="main")._insert_settings([])
    assert settings["insert_distributed_sync"] == 1
    assert settings["wait_for_async_insert"] == 1


def test_the_documentation_shows_what_is_sent():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "clickhouse.md").read_text()
    shown = re.findall(r"^```sql\n(.*?)\n```", page, re.DOTALL | re.MULTILINE)
    local, distributed = CLUSTER.create_tables(retention_days=400)
    columns = re.compile(r"\(\n    .*?\n\)", re.DOTALL)
    assert shown == [
        *SINGLE.create_tables(retention_days=None),
        columns.sub("(\n    …\n)", local) + "\n\n" + distributed,
    ]
