"""chdb, ClickHouse's engine in this process, keeps the contract; and what is its own."""

from __future__ import annotations

import importlib.util
import logging
import random
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from logbun_logging import (
    AdapterUnavailableError,
    AuditTrail,
    ConfigurationError,
    QueryError,
    RejectedEventsError,
)
from logbun_logging.adapters import ClickHouseAdapter
from logbun_logging.event import decode_event, encode_event
from logbun_logging.query import ALL_TENANTS, Pagination, make_filters
from logbun_logging.testing import AdapterContract, samples
from logbun_logging.testing.contract import newest_first, read
from tests.contract.clickhouse_older import OLDER_TABLES, make_older_table

if importlib.util.find_spec("chdb") is None:
    pytest.skip("chdb is missing: pip install -e '.[dev-all]'", allow_module_level=True)

NOW = datetime(2026, 6, 20, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Keep the engine open for all tests of this module: to start it takes half a second."""
    keeper = ClickHouseAdapter(path=tmp_path_factory.mktemp("chdb"), database="keeper")
    keeper.init()
    yield keeper
    keeper.close()


def run(engine, statement):
    """Run a statement, past the adapter, and return its rows."""
    with engine._connections.client() as client:
        client.database = "default"
        if statement.startswith("SELECT"):
            return client.query(statement).result_rows
        client.command(statement)
        return None


@pytest.fixture
def database(engine):
    run(engine, "DROP TABLE IF EXISTS default.audit_logs SYNC")
    return engine


@pytest.fixture
def make_adapter(database):
    path = database._options.path
    return lambda **options: ClickHouseAdapter(path=path, **options)


@pytest.fixture
def adapter(make_adapter):
    made = make_adapter()
    made.init()
    yield made
    made.close()


class TestEmbeddedClickHouse(AdapterContract):
    shares_database = False  # several adapters may, but of one process only
    prunes_rows = False

    @pytest.fixture
    def make_adapter(self, make_adapter):
        return make_adapter

    @pytest.fixture(params=OLDER_TABLES.values(), ids=OLDER_TABLES)
    def older_table(self, request, database):
        return lambda: make_older_table(lambda sql: run(database, sql), request.param)


def aged(days, tenant_id="t", count=1):
    rng = random.Random(f"{days} {tenant_id}")
    moment = NOW - timedelta(days=days)
    return [samples.event_at(moment, rng, tenant_id=tenant_id) for _ in range(count)]


def test_a_database_that_is_only_asked_for_is_not_made(make_adapter, database, tmp_path):
    for name in ("misspelt", "default"):  # the engine has the second, but no table in it
        missing = make_adapter(database=name)
        assert not missing.exists()
        missing.close()
    assert ("misspelt",) not in run(database, "SELECT name FROM system.databases")
    made = make_adapter()
    made.init()
    assert made.exists()
    made.close()
    assert not ClickHouseAdapter(path=tmp_path / "typo").exists()
    assert not [*tmp_path.iterdir()]


# ── copies ──


def test_copies_that_are_not_merged_yet_are_read_once_on_pages_of_any_size(adapter, database):
    run(database, "SYSTEM STOP MERGES default.audit_logs")
    rng = random.Random(1)
    events = [
        samples.event_at(NOW + timedelta(seconds=number // 3), rng, tenant_id="t")
        for number in range(60)
    ]
    for start in range(0, 60, 7):  # in batches that differ each time, as after a crash
        adapter.bulk_insert("t", events[max(0, start - 5) : start + 11])
        adapter.bulk_insert("t", events[: start + 1])
    ((rows,),) = run(database, "SELECT count() FROM default.audit_logs")
    assert rows > 3 * len(events)
    for limit in (1, 2, 7, 59, 60, 61, 1000):
        assert read(adapter, "t", limit=limit) == newest_first(events)
        assert read(adapter, limit=limit) == newest_first(events)


def test_a_merge_leaves_one_row_of_each_event(adapter, database):
    events = aged(1, count=20)
    adapter.bulk_insert("t", events)
    adapter.bulk_insert("t", events[:10])
    adapter.bulk_insert("t", events[10:])
    run(database, "OPTIMIZE TABLE default.audit_logs FINAL")
    assert run(database, "SELECT count() FROM default.audit_logs") == [(20,)]
    assert read(adapter, "t") == newest_first(events)


def test_the_same_batch_again_makes_no_copies(adapter, database):
    events = aged(1, count=20)
    for _ in range(3):
        adapter.bulk_insert("t", events)
    assert run(database, "SELECT count() FROM default.audit_logs") == [(20,)]


# ── events as lines of JSON ──


def encoded(**fields):
    (event,) = aged(1)
    return msgspec.structs.replace(event, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"actor_id": "unknown", "action": 'a","actor_id":"x', "new_values": {"actor_id": "x"}},
        {"action": "ends in a backslash\\", "actor_id": ""},
        {"id": 'not a UUID, but "quoted"'},
        {"created_at": "1969-12-31T23:59:59.999999Z"},
        {"created_at": "1970-01-01T00:00:00.000000Z"},
        {"created_at": "2199-12-31T23:59:59.999999Z"},
        {"created_at": "2200-01-01T00:00:00.000000Z"},
        {"created_at": "9999-12-31T23:59:59.999999Z"},
        {"tenant_id": ""},
        {"tenant_id": "\0a"},
        {"tenant_id": None, "metadata": {}},
        {"metadata": {"a": {"b": [1, None, "\n", {"c": 1e400}]}, "id": "x", "n": 10**30}},
    ],
    ids=repr,
)
def test_an_encoded_event_is_stored_as_the_event_would_be(adapter, fields):
    event = encoded(**fields)
    payload = encode_event(event)
    other = encode_event(msgspec.structs.replace(aged(2)[0], tenant_id=event.tenant_id))
    adapter.insert_encoded([(event.tenant_id, [other, payload])])
    assert decode_event(payload) in read(adapter, event.tenant_id)
    by_columns = msgspec.structs.replace(decode_event(payload), id="zzz")
    adapter.bulk_insert(event.tenant_id, [by_columns])
    assert by_columns in read(adapter, event.tenant_id)
    assert len(read(adapter, event.tenant_id)) == 3


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (b'"tenant_id":"t"', b'"tenant_id":5'),
        (b'"tenant_id":"t"', b'"tenant_id":true'),
        (b'"tenant_id":"t"', b'"tenant_id":["t"]'),
        (b'"tenant_id":"t"', b'"tenant_id":"\\ud800"'),
        (b'"actor_id":"u"', b'"actor_id":null'),
        (b'"metadata":{', b'"metadata":5,"more":{'),
        (b"}}", b"}"),
        (b"}}", b"}} {"),
        (b"-06-", b"-19-"),
        (b'"created_at"', b'"made_at"'),
    ],
)
def test_of_a_large_batch_with_something_else_than_an_event_nothing_is_stored(adapter, told, found):
    good = [encode_event(event) for event in aged(1, count=10_000)]
    payload = encode_event(encoded(actor_id="u", metadata={"a": 1}))
    assert payload.count(told) == 1
    with pytest.raises(RejectedEventsError):
        adapter.insert_encoded([("t", [*good, payload.replace(told, found)])])
    assert read(adapter) == []


def test_an_event_of_a_newer_version_is_stored_without_what_is_not_known(adapter):
    payload = encode_event(encoded())
    assert adapter.insert_encoded([("t", [payload[:-1] + b',"mood":{"good":[1]}}'])])
    assert read(adapter) == [encoded()]


# ── times ──


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00.000000Z",
        "1969-12-31T23:59:59.999999Z",
        "2026-03-29T01:30:00.000001Z",
        "2106-02-07T06:28:16.000000Z",
        "9999-12-31T23:59:59.999999Z",
    ],
)
def test_a_time_of_any_year_is_kept_to_the_microsecond_and_found(adapter, text):
    (event,) = aged(1)
    event = msgspec.structs.replace(event, created_at=text)
    adapter.bulk_insert("t", [event])
    assert read(adapter, "t", start_date=text, end_date=text) == [event]


def test_a_cursor_of_somebody_else_is_a_query_error(adapter):
    with pytest.raises(QueryError, match="cursor"):
        adapter.query("t", make_filters(), Pagination(limit=5, after=("yesterday", "1")))


def test_events_of_hundreds_of_months_go_in_at_once(adapter):
    events = [event for days in range(0, 6000, 30) for event in aged(days)]
    adapter.bulk_insert("t", events)
    assert read(adapter, "t") == newest_first(events)


@pytest.mark.parametrize("tenant", [None, "", "\0", "\0a"])
def test_no_tenant_is_none_of_those_whose_name_is_empty(adapter, tenant):
    events = {name: aged(1, name) for name in (None, "", "\0", "\0a", "a")}
    adapter.bulk_insert_many(list(events.items()))
    assert read(adapter, tenant) == events[tenant]
    assert adapter.prune(None, tenants={"": 1, "\0": 1}, now=NOW + timedelta(days=9)) == {
        "": 1,
        "\0": 1,
    }
    assert len(read(adapter)) == 3


# ── retention ──


def months(database):
    statement = "SELECT DISTINCT _partition_id FROM default.audit_logs ORDER BY 1"
    return [month for (month,) in run(database, statement)]


def test_a_month_goes_when_its_last_day_has_expired_and_not_before(adapter, database):
    events = [samples.event_at(datetime(2026, 3, day, tzinfo=UTC), random.Random(day))
              for day in (1, 31)]  # fmt: skip
    adapter.bulk_insert(None, events)
    april = datetime(2026, 4, 1, tzinfo=UTC)
    just_before = april + timedelta(days=90) - timedelta(microseconds=1)
    assert adapter.prune(90, now=just_before) == {None: 0}
    assert adapter.prune(90, now=april + timedelta(days=90), dry_run=True) == {None: 2}
    assert adapter.prune(90, now=april + timedelta(days=90)) == {None: 2}
    assert months(database) == []


def test_a_tenant_that_keeps_its_rows_for_longer_keeps_the_month_but_no_one_else_s_rows(
    adapter, database
):
    events = {who: aged(150, who, 3) for who in ("bank", "shop", None)}
    adapter.bulk_insert_many(list(events.items()))
    expected = {"bank": 0, None: 6}
    assert adapter.prune(90, tenants={"bank": 365}, now=NOW, dry_run=True) == expected
    assert adapter.prune(90, tenants={"bank": 365}, now=NOW) == expected
    assert read(adapter) == newest_first(events["bank"])
    assert len(months(database)) == 1
    later = NOW + timedelta(days=300)
    assert adapter.prune(90, tenants={"bank": 365}, now=later) == {"bank": 3, None: 0}
    assert months(database) == []


def test_a_tenant_that_keeps_its_rows_for_less_long_loses_them_to_the_microsecond(adapter):
    limit = NOW - timedelta(days=7)
    rng = random.Random(9)
    moments = [limit + timedelta(microseconds=number) for number in (-1, 0, 1)]
    events = [samples.event_at(moment, rng, tenant_id="trial") for moment in moments]
    others = aged(30, "t")
    adapter.bulk_insert_many([("trial", events), ("t", others)])
    assert adapter.prune(90, tenants={"trial": 7}, now=NOW) == {"trial": 1, None: 0}
    assert read(adapter) == newest_first([*events[1:], *others])


def test_what_is_called_like_no_month_is_never_dropped(database, make_adapter):
    run(database, OLDER_TABLES["an engine that keeps copies, and a column of somebody else's"])
    adapter = make_adapter()
    adapter.init()
    adapter.bulk_insert("t", aged(150))
    assert adapter.prune(90, tenants={"u": 1}, now=NOW) == {"u": 0, None: 0}
    assert read(adapter) == aged(150)
    adapter.close()


def test_retention_days_are_the_ttl_of_the_table_and_can_be_changed(make_adapter, database):
    engine = "SELECT engine_full FROM system.tables WHERE database = 'default' AND name LIKE 'a%'"
    for days in (400, 30, None, 30):
        adapter = make_adapter(retention_days=days)
        adapter.init()
        adapter.close()
        assert f"TTL created_at + toIntervalDay({days or 30})" in run(database, engine)[0][0]
    adapter = make_adapter(retention_days=30)
    adapter.init()
    now = datetime.now(UTC)
    old, new = (samples.event_at(now - timedelta(days=days), random.Random(1)) for days in (40, 1))
    adapter.bulk_insert(None, [old, new])
    run(database, "OPTIMIZE TABLE default.audit_logs FINAL")
    assert read(adapter) == [new]
    adapter.close()


def test_a_ttl_that_is_shorter_than_the_retention_of_a_trail_is_refused(tmp_path, make_adapter):
    for retention in ({"days": 91}, {"days": 30, "tenants": {"bank": 365}}):
        with pytest.raises(ConfigurationError, match="retention_days"):
            AuditTrail(
                namespace="short",
                data_dir=tmp_path,
                adapter=make_adapter(retention_days=90),
                retention=retention,
            )


# ── faults that the engine has itself ──


def test_too_many_parts_are_an_outage_and_not_the_events_fault(adapter, database):
    run(database, "SYSTEM STOP MERGES default.audit_logs")
    run(
        database,
        "ALTER TABLE default.audit_logs MODIFY SETTING parts_to_throw_insert = 2, "
        "parts_to_delay_insert = 0",
    )
    with pytest.raises(AdapterUnavailableError, match="TOO_MANY_PARTS"):
        for number in range(5):
            adapter.bulk_insert("t", aged(number / 100))


def test_a_query_that_needs_too_much_memory_is_an_outage(make_adapter):
    adapter = make_adapter(settings={"max_memory_usage": 1_000_000})
    with pytest.raises(AdapterUnavailableError, match="MEMORY_LIMIT"):
        adapter.init()
        adapter.bulk_insert_many([(None, aged(1, None, 20_000))])
        adapter.query(ALL_TENANTS, make_filters(), Pagination(limit=1000))
    adapter.close()


def test_a_table_that_somebody_has_dropped_is_an_outage_until_it_is_made_again(adapter, database):
    run(database, "DROP TABLE default.audit_logs SYNC")
    with pytest.raises(AdapterUnavailableError, match="UNKNOWN_TABLE"):
        adapter.bulk_insert("t", aged(1))
    adapter.init()
    adapter.bulk_insert("t", aged(1))
    assert read(adapter) == aged(1)


def test_a_database_is_made_when_it_is_missing(make_adapter, database):
    run(database, "DROP DATABASE IF EXISTS `new-one` SYNC")
    adapter = make_adapter(database="new-one")
    adapter.init()
    adapter.bulk_insert("t", aged(1))
    assert read(adapter) == aged(1)
    adapter.close()


def test_an_adapter_that_is_not_open_is_unavailable(make_adapter):
    with pytest.raises(AdapterUnavailableError, match="not open"):
        make_adapter().bulk_insert("t", aged(1))


def test_a_process_has_one_folder_open_at_a_time(adapter, tmp_path):
    other = ClickHouseAdapter(path=tmp_path / "other")
    with pytest.raises(ConfigurationError, match="one folder in a process"):
        other.init()


# ── processes: each of these programs has an engine of its own ──

PRELUDE = """
import logging, os, sys, time
from logbun_logging import AuditTrail, AdapterUnavailableError
from logbun_logging.adapters import ClickHouseAdapter
from logbun_logging.query import *
from logbun_logging.testing import samples

def stored(adapter):
    return len(adapter.query(ALL_TENANTS, make_filters(), Pagination(limit=1000)))

def wait_for(child):
    status = os.waitpid(child, 0)[1]
    assert status == 0, status
"""


def run_program(folder, program):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_process_finds_the_folder_taken(engine, tmp_path):
    program = f"""
        try:
            ClickHouseAdapter(path={str(engine._options.path)!r}).init()
        except AdapterUnavailableError as error:
            print(error)
    """
    assert "another process" in run_program(tmp_path, program)


def test_a_child_is_refused_and_ends_while_the_parent_goes_on(tmp_path):
    run_program(
        tmp_path,
        """
        adapter = ClickHouseAdapter(path="audit")
        adapter.init()
        adapter.bulk_insert("t", [samples.encode("before", tenant_id="t")])
        child = os.fork()
        if child == 0:
            adapter.after_fork()
            for call in (adapter.init, ClickHouseAdapter(path="other").init):
                try:
                    call()
                except AdapterUnavailableError as error:
                    assert "survive a fork" in str(error)
                else:
                    sys.exit(1)
            sys.exit(0)  # which hangs where the engine is open
        wait_for(child)
        adapter.bulk_insert("t", [samples.encode("after", tenant_id="t")])
        assert stored(adapter) == 2
        adapter.close()
        """,
    )


def test_a_child_of_a_process_that_has_not_used_the_engine_may(tmp_path):
    run_program(
        tmp_path,
        """
        adapter = ClickHouseAdapter(path="audit")
        child = os.fork()
        if child == 0:
            adapter.after_fork()
            adapter.init()
            adapter.bulk_insert("t", [samples.encode("child", tenant_id="t")])
            adapter.close()
            sys.exit(0)
        wait_for(child)
        adapter.init()
        assert stored(adapter) == 1
        adapter.close()
        """,
    )


def test_what_a_child_logs_is_brought_to_the_database_by_the_parent(tmp_path):
    run_program(
        tmp_path,
        """
        trail = AuditTrail(
            namespace="forking", mode="durable", adapter="chdb://" + os.path.abspath("audit"),
            retry={"max_retries": 0, "scan_interval": 3600.0, "first_scan": 3600.0},
        )
        logger = logging.getLogger("audit")
        logger.setLevel(logging.INFO)
        logger.addHandler(trail.handler)
        logger.info("parent", extra={"tenant_id": "t"})
        assert trail.flush(60)
        child = os.fork()
        if child == 0:
            logger.info("child", extra={"tenant_id": "t"})
            trail.flush(30)
            trail.shutdown(30)
            os._exit(0)  # as multiprocessing does; the engine's own exit handlers may crash here
        wait_for(child)
        for _ in range(50):
            trail.run_maintenance()
            actions = sorted(event.action for event in trail.iter(tenant_id="t"))
            if len(actions) == 2:
                break
        assert actions == ["child", "parent"], actions
        trail.shutdown()
        """,
    )


def test_a_killed_process_leaves_every_insert_that_returned(tmp_path):
    program = f"{PRELUDE}\n" + textwrap.dedent(
        """
        adapter = ClickHouseAdapter(path="audit")
        adapter.init()
        for number in range(1000):
            adapter.bulk_insert("t", [samples.encode(str(number), tenant_id="t")])
            print(number, flush=True)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    with process.stdout:
        while process.stdout.readline() != "20\n":
            assert process.poll() is None
        process.kill()
        returned = 21 + len(process.stdout.readlines())
    process.wait(60)
    stored = int(
        run_program(
            tmp_path,
            """
            adapter = ClickHouseAdapter(path="audit")
            adapter.init()
            print(stored(adapter))
            adapter.close()
            """,
        )
    )
    assert returned <= stored <= returned + 1


def test_the_driver_is_asked_for_by_the_name_of_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "clickhouse_connect", None)
    with pytest.raises(ConfigurationError, match=r"the extra 'clickhouse' of logbun-logging"):
        ClickHouseAdapter(host="localhost")
    with pytest.raises(ConfigurationError, match=r"the extra 'chdb' of logbun-logging"):
        ClickHouseAdapter(path=tmp_path)


def test_without_chdb_the_extra_of_its_name_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("logbun_logging.adapters.clickhouse.options.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"the extra 'chdb' of logbun-logging"):
        ClickHouseAdapter(path=tmp_path)
    ClickHouseAdapter(host="localhost")


def test_no_value_of_an_event_gets_into_the_driver_s_log(adapter, caplog):
    (event,) = aged(1)
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception, match="actor_id"):
        adapter.bulk_insert("t", [msgspec.structs.replace(event, actor_id=12345)])
    assert "12345" not in caplog.text


# ── codecs ──


def codecs(database):
    found = run(
        database,
        "SELECT name, compression_codec FROM system.columns "
        "WHERE database = 'default' AND table = 'audit_logs' AND compression_codec != ''",
    )
    return dict(found)


PACKED = {
    "created_at": "CODEC(Delta(8), ZSTD(1))",
    **dict.fromkeys(("id", "request_id", "old_values", "new_values", "metadata"), "CODEC(ZSTD(1))"),
}


def test_columns_are_packed_also_those_of_an_older_table_unless_somebody_has_chosen(
    make_adapter, database
):
    make_adapter().init()
    assert codecs(database) == PACKED
    run(database, "ALTER TABLE default.audit_logs MODIFY COLUMN metadata CODEC(LZ4HC(9))")
    for name in ("id", "request_id", "created_at"):
        run(database, f"ALTER TABLE default.audit_logs MODIFY COLUMN {name} REMOVE CODEC")
    adapter = make_adapter()
    events = aged(1, count=20)
    adapter.init()
    adapter.bulk_insert("t", events)
    assert codecs(database) == {**PACKED, "metadata": "CODEC(LZ4HC(9))"}
    changed = run(database, "SELECT metadata_modification_time FROM system.tables")
    make_adapter().init()
    assert run(database, "SELECT metadata_modification_time FROM system.tables") == changed
    run(database, "OPTIMIZE TABLE default.audit_logs FINAL")
    assert read(adapter, "t") == newest_first(events)


def test_a_login_that_may_not_change_the_table_uses_it_as_it_is(make_adapter, database):
    make_adapter().init()
    run(database, "ALTER TABLE default.audit_logs MODIFY COLUMN id REMOVE CODEC")
    adapter = make_adapter(settings={"allow_ddl": 0})
    adapter.init()
    assert "id" not in codecs(database)
    (event,) = aged(1)
    adapter.bulk_insert("t", [event])
    assert read(adapter, "t") == [event]
    adapter.close()
