"""What a user may say about a ClickHouse database, and what happens when it is wrong."""

from __future__ import annotations

import pytest

from logbun_logging import AuditTrail, ConfigurationError
from logbun_logging.adapters import ClickHouseAdapter, create_adapter

#: Most of these have a password for a host that is elsewhere; one test is about that.
pytestmark = pytest.mark.filterwarnings("ignore:.*unencrypted")


def options_of(spec):
    adapter = create_adapter(spec)
    assert isinstance(adapter, ClickHouseAdapter)
    return adapter._options


def test_a_url_says_everything():
    options = options_of(
        "clickhouse://me:p%40ss%2Fword@db.example:9123/audit"
        "?retention_days=90&cluster=main&async_insert=0&timeout=2.5"
    )
    assert (options.host, options.port, options.database) == ("db.example", 9123, "audit")
    assert (options.username, options.password) == ("me", "p@ss/word")
    assert (options.retention_days, options.cluster) == (90, "main")
    assert (options.async_insert, options.timeout, options.secure) == (False, 2.5, False)


def test_what_a_url_does_not_say_has_defaults():
    options = options_of("clickhouse://db.example")
    assert (options.port, options.database, options.username) == (8123, "default", "default")
    assert (options.retention_days, options.cluster, options.async_insert) == (None, None, True)
    options = options_of("clickhouses://db.example")
    assert (options.port, options.secure) == (8443, True)


def test_arguments_win_over_the_url_where_both_say_something():
    adapter = ClickHouseAdapter("clickhouse://me:a@db/one", database="two", password="b")
    assert (adapter._options.database, adapter._options.password) == ("two", "b")


@pytest.mark.parametrize(
    "spec",
    [
        {"url": "clickhouse://me:secret@db:1/audit"},
        {"type": "clickhouse", "host": "db", "port": 1, "username": "me", "password": "secret",
         "database": "audit"},
        {"type": "ClickHouseAdapter", "url": "clickhouse://me@db:1/audit", "password": "secret"},
    ],
)  # fmt: skip
def test_a_mapping_may_name_the_parts(spec):
    options = options_of(spec)
    assert (options.host, options.port, options.username) == ("db", 1, "me")
    assert (options.password, options.database) == ("secret", "audit")


def test_chdb_is_a_folder(tmp_path):
    pytest.importorskip("chdb", reason="chdb is missing: pip install -e '.[dev-all]'")
    options = options_of(f"chdb://{tmp_path}/a%20b?database=audit")
    assert (options.path, options.database) == (tmp_path / "a b", "audit")
    assert options_of({"type": "clickhouse", "path": tmp_path}).path == tmp_path
    assert not options.async_insert  # there is nobody to collect inserts with


@pytest.mark.parametrize(
    ("given", "warns"),
    [
        ({"url": "clickhouse://me:secret@db/audit"}, True),
        ({"host": "10.0.0.7", "password": "secret"}, True),
        ({"host": "db"}, False),
        ({"host": "db", "password": "secret", "secure": True}, False),
        ({"host": "127.0.0.1", "password": "secret"}, False),
        ({"host": "::1", "password": "secret"}, False),
        ({"host": "db.localhost", "password": "secret"}, False),
    ],
)
@pytest.mark.filterwarnings("default:.*unencrypted")
def test_a_password_that_goes_over_a_network_in_clear_is_warned_of(given, warns, recwarn):
    ClickHouseAdapter(**given)
    texts = [str(warning.message) for warning in recwarn]
    assert [("unencrypted: use clickhouses://" in text) for text in texts] == [True] * warns
    assert not any("secret" in text for text in texts)


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({}, "adapter"),
        ({"url": "clickhouse://db", "host": "db"}, "adapter"),
        ({"url": "clickhouse:///audit"}, "adapter.url"),
        ({"url": "clickhouse://db:port"}, "adapter.url"),
        ({"url": "clickhouse://db:99999"}, "adapter.url"),
        ({"url": "clickhouse://me:pass#word@db/audit"}, "adapter.url"),
        ({"url": "clickhouse://me:12#word@db/audit"}, "adapter.url"),
        ({"url": "http://db:8123"}, "adapter.url"),
        ({"url": 7}, "adapter.url"),
        ({"url": "chdb://memory"}, "adapter.url"),
        ({"url": "chdb:///"}, "adapter.url"),
        ({"url": "clickhouse://db?sharding=on"}, "adapter.url"),
        ({"url": "clickhouse://db?timeout=soon"}, "adapter.timeout"),
        ({"url": "clickhouse://db?async_insert=maybe"}, "adapter.async_insert"),
        ({"url": "clickhouse://db/a`b"}, "adapter.database"),
        ({"host": "db", "database": "x; DROP DATABASE y"}, "adapter.database"),
        ({"host": "db", "cluster": "a'b"}, "adapter.cluster"),
        ({"host": "db", "port": 0}, "adapter.port"),
        ({"host": "db", "port": "8123"}, "adapter.port"),
        ({"host": 5}, "adapter.host"),
        ({"host": "db", "secure": 1}, "adapter.secure"),
        ({"host": "db", "retention_days": 0}, "adapter.retention_days"),
        ({"host": "db", "retention_days": "90 DAY"}, "adapter.retention_days"),
        ({"host": "db", "timeout": 0}, "adapter.timeout"),
        ({"host": "db", "timeout": True}, "adapter.timeout"),
        ({"host": "db", "settings": "insert_quorum=2"}, "adapter.settings"),
        ({"path": ""}, "adapter.path"),
        ({"path": ":memory:"}, "adapter.path"),
        ({"path": 5}, "adapter.path"),
        ({"path": "/data", "cluster": "main"}, "adapter.cluster"),
    ],
)
def test_what_is_not_allowed_is_named(given, option):
    with pytest.raises(ConfigurationError) as caught:
        ClickHouseAdapter(**given)
    assert caught.value.option == option


def test_a_port_or_a_password_that_cannot_be_read_is_told_how():
    for url in ("clickhouse://db:99999", "clickhouse://me:pass#word@db", "clickhouse://me:1#w@db"):
        with pytest.raises(ConfigurationError, match=r"1 to 65,535.*%23"):
            ClickHouseAdapter(url)


def test_no_password_is_in_any_text():
    secret = "hunter2-hunter2"
    texts = [
        repr(ClickHouseAdapter(f"clickhouse://me:{secret}@db/audit")),
        repr(ClickHouseAdapter(f"clickhouse://me:{secret}@db/audit")._options),
    ]
    for given in (
        {"url": f"clickhouse://me:{secret}@db:port"},
        {"url": f"clickhouse://me:{secret}#/?x@db:1/audit"},
        {"url": f"clickhouse://me:12#{secret}@db:1/audit"},
        {"url": f"clickhouse://me:{secret}@db/audit?unknown=1"},
        {"url": f"clickhouse://me:{secret}@db", "host": "db"},
        {"path": "/data", "password": secret},
        {"host": "db", "password": secret.encode()},
    ):
        with pytest.raises(ConfigurationError) as caught:
            ClickHouseAdapter(**given)
        texts.append(str(caught.value))
    with pytest.raises(ConfigurationError) as caught:
        create_adapter({"type": "clickhouse", "host": "db", "password": secret, "colour": "red"})
    texts.append(str(caught.value))
    assert not [text for text in texts if secret in text]


def test_a_database_for_each_tenant_is_refused_and_told_why(tmp_path):
    with (
        AuditTrail(
            namespace="per-tenant",
            data_dir=tmp_path,
            tenancy={
                "mode": "database_per_tenant",
                "resolve_connection": lambda tenant: f"clickhouse://db/{tenant}",
            },
        ) as trail,
        pytest.raises(ConfigurationError, match="one table") as caught,
    ):
        trail.query(tenant_id="t")
    assert "single_database" in str(caught.value)
    with pytest.raises(ConfigurationError, match="resolve_connection"):
        AuditTrail(
            namespace="per-tenant",
            data_dir=tmp_path,
            adapter="clickhouse://db/audit",
            tenancy={"mode": "database_per_tenant"},
        )
