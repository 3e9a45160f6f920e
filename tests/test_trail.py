"""Queries, life, and the promises at volume."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
import re
import subprocess
import sys
import threading
import uuid
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import logbun_logging
from logbun_logging import (
    ALL_TENANTS,
    AuditLogger,
    AuditTrail,
    NotReadyError,
    QueryError,
    TenantRequiredError,
)
from logbun_logging.adapters._sql.select import select_page
from logbun_logging.adapters.sqlite.adapter import SQLiteAdapter
from logbun_logging.event import AuditEvent, decode_event, new_event_id, utc_timestamp
from logbun_logging.query import Pagination, make_filters
from tests.fakes import MemoryAdapter, wait_until

BASE = datetime(2026, 1, 1, tzinfo=UTC)


def stored(number, **fields):
    moment = BASE + timedelta(seconds=number)
    fields.setdefault("tenant_id", "t")
    fields.setdefault("action", f"{('course', 'user')[number % 2]}.{('a', 'b', 'c')[number % 3]}")
    fields.setdefault("actor_id", f"u{number % 4}")
    fields.setdefault("entity_type", ("course", "user")[number % 2])
    fields.setdefault("entity_id", str(number % 5))
    fields.setdefault("outcome", ("success", None)[number % 2])
    fields.setdefault("request_id", f"r{number}" if number % 10 == 0 else None)
    return AuditEvent(new_event_id(), utc_timestamp(moment.timestamp()), **fields)


@pytest.fixture
def filled(make_trail, tmp_path):
    events = [stored(number) for number in range(200)] + [
        stored(number, tenant_id=tenant) for number, tenant in enumerate(["other", None] * 20)
    ]
    random.Random(1).shuffle(events)
    adapter = SQLiteAdapter(tmp_path / "audit.db")
    adapter.init()
    adapter.bulk_insert(None, events)
    adapter.bulk_insert(None, events)
    adapter.close()
    return make_trail(), sorted(events, key=lambda e: (e.created_at, e.id), reverse=True)


FILTERS = [
    ({}, lambda e: True),
    ({"action": "course.a"}, lambda e: e.action == "course.a"),
    ({"action": "course.*"}, lambda e: e.action.startswith("course.")),
    ({"action": ["course.a", "user.*"]}, lambda e: e.action == "course.a" or e.action[0] == "u"),
    ({"action": "none.*"}, lambda e: False),
    ({"action": "*"}, lambda e: True),
    ({"actor_id": "u1"}, lambda e: e.actor_id == "u1"),
    (
        {"entity_type": "user", "entity_id": "3"},
        lambda e: e.entity_type[0] == "u" and e.entity_id == "3",
    ),
    ({"outcome": "success"}, lambda e: e.outcome == "success"),
    ({"request_id": "r50"}, lambda e: e.request_id == "r50"),
    ({"actor_id": "u1", "action": "course.*"}, lambda e: e.actor_id == "u1" and e.action[0] == "c"),
    (
        {"start_date": BASE + timedelta(seconds=100)},
        lambda e: e.created_at >= "2026-01-01T00:01:40",
    ),
    ({"end_date": "2026-01-01T02:01:40+02:00"}, lambda e: e.created_at <= "2026-01-01T00:01:40.1"),
    (
        {"start_date": "2026-01-01T00:00:10Z", "end_date": datetime(2026, 1, 1, 0, 0, 20)},  # noqa: DTZ001
        lambda e: "2026-01-01T00:00:10" <= e.created_at <= "2026-01-01T00:00:20.1",
    ),
]


@pytest.mark.parametrize(("query", "matches"), FILTERS, ids=range(len(FILTERS)))
@pytest.mark.parametrize("limit", [7, 1000])
def test_a_filter_finds_what_it_names_newest_first(filled, query, matches, limit):
    trail, events = filled
    wanted = [event for event in events if event.tenant_id == "t" and matches(event)]
    assert list(trail.iter(tenant_id="t", limit=limit, **query)) == wanted


def test_a_tenant_s_query_finds_nobody_else_s_rows(filled):
    trail, events = filled
    for tenant in ("t", "other", None):
        assert {event.tenant_id for event in trail.iter(tenant_id=tenant)} == {tenant}
    assert trail.query().logs == [e for e in events if e.tenant_id is None][:50]
    assert list(trail.iter(tenant_id=ALL_TENANTS)) == events
    assert list(trail.iter(tenant_id=ALL_TENANTS, action="course.*")) == [
        event for event in events if event.action.startswith("course.")
    ]


@pytest.mark.parametrize(("query", "_"), FILTERS, ids=range(len(FILTERS)))
def test_no_filter_of_a_tenant_scans_the_table(filled, query, _):
    trail, _events = filled
    with (
        trail.pipeline.databases.lease(None) as target,
        target.adapter._connections.reading() as database,
    ):
        plans = []

        def run(statement, values):
            plan = database.execute("EXPLAIN QUERY PLAN " + statement, values).fetchall()
            plans.extend(row[3] for row in plan)
            return database.execute(statement, values).fetchall()

        place = (utc_timestamp(BASE.timestamp() + 150), new_event_id())
        for tenant, after in itertools.product(("t", None), (None, place)):
            select_page(run, tenant, make_filters(**query), Pagination(limit=5, after=after))
    touching = [plan for plan in plans if "audit_logs" in plan]
    assert all("SEARCH audit_logs USING" in plan and "INDEX" in plan for plan in touching)
    assert touching or query == {"action": "none.*"}
    # Of several actions one page each is read in order, and only those pages are merged by sorting.
    several = "action" in query and query["action"] != "course.a"
    assert several or not any("TEMP B-TREE" in plan for plan in plans)


def test_paging_misses_and_repeats_nothing_while_rows_arrive(filled):
    trail, events = filled
    wanted = [event for event in events if event.tenant_id == "t"]
    found, cursor = [], None
    for number in range(1000):
        page = trail.query(tenant_id="t", limit=7, cursor=cursor)
        found += page.logs
        cursor = page.next_cursor
        if cursor is None:
            break
        with trail.pipeline.databases.lease(None) as target:
            target.adapter.bulk_insert("t", [stored(10_000 + number)])
    assert found == wanted


def test_a_pattern_that_no_query_knows_is_refused_with_those_that_it_knows(filled):
    for pattern in ("*.created", "a*b", "**"):
        with pytest.raises(QueryError, match="a prefix with one") as raised:
            filled[0].query(action=pattern)
        assert repr(pattern) in str(raised.value)


def test_limits_are_clamped(filled):
    trail, _ = filled
    assert len(trail.query(tenant_id="t", limit=0).logs) == 1
    assert len(trail.query(tenant_id="t", limit=10**9).logs) == 200


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "5"},
        {"cursor": "garbage"},
        {"cursor": 5},
        {"start_date": "yesterday"},
        {"end_date": 5},
        {"action": []},
        {"action": [5]},
        {"action": 5},
        {"action": "*.created"},
        {"action": "a*b"},
        {"action": ["a", "a*b*"]},
        {"action": "a**"},
        {"actor_id": 5.5},
        {"entity_id": True},
        {"action": [f"a{number}" for number in range(101)]},
        {"action": itertools.repeat("a*")},
        {"tenant_id": ""},
        {"tenant_id": 0},
        {"tenant_id": ["t"]},
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(filled, query):
    with pytest.raises(QueryError, match=next(iter(query))):
        filled[0].query(**query)


def test_a_wrong_argument_is_named_without_all_of_its_text(filled):
    long = "z" * 1_000_000
    for query in ({"cursor": long}, {"action": f"*{long}"}, {"start_date": long}, {"limit": long}):
        with pytest.raises(QueryError) as caught:
            filled[0].query(**query)
        assert len(str(caught.value)) < 500


def test_a_query_finds_what_had_to_be_cleaned_by_the_words_of_the_call(make_trail, make_logger):
    trail = make_trail()
    AuditLogger(make_logger(trail.handler)).fire(
        "a\0.b", tenant_id="t\ud800", actor_id="u\0", entity_id="\ud800"
    )
    assert trail.flush(20)
    for query in ({"actor_id": "u\0"}, {"entity_id": "\ud800"}, {"action": ["a\0*", "\ud800"]}):
        assert len(trail.query(tenant_id="t\ud800", **query).logs) == 1


def test_a_query_takes_the_ids_that_a_call_takes(make_trail, make_logger):
    trail = make_trail()
    thing = uuid.UUID(int=7)
    AuditLogger(make_logger(trail.handler)).fire("a", entity_id=7, actor_id=thing)
    assert trail.flush(20)
    assert len(trail.query(entity_id=7, actor_id=thing).logs) == 1
    assert trail.query(entity_id=8).logs == []


def test_async_twins_do_the_same(filled):
    trail, events = filled

    async def main():
        page = await trail.aquery(tenant_id="other", limit=5)
        every = [event async for event in trail.aiter(tenant_id="other", limit=3)]
        assert await trail.aready()
        assert await trail.aflush()
        return page, every, await trail.ashutdown()

    page, every, ended = asyncio.run(main())
    wanted = [event for event in events if event.tenant_id == "other"]
    assert (page.logs, every, ended) == (wanted[:5], wanted, True)


def test_a_tenant_can_be_required(make_trail, make_logger):
    adapter = MemoryAdapter()
    trail = make_trail(adapter=adapter, require_tenant_id=True)
    audit = AuditLogger(make_logger(trail.handler))
    audit.fire("none")
    audit.fire("some", tenant_id="t")
    assert trail.flush(20)
    assert [event.action for event in adapter.events.values()] == ["some"]
    assert trail.stats()["refused"] == 1
    assert trail.stats()["dlq"]["pending_events"] == 1
    with pytest.raises(TenantRequiredError, match="tenant_id=None"):
        trail.query()
    with pytest.raises(TenantRequiredError, match="tenant_id=ALL_TENANTS"):
        trail.query(tenant_id=logbun_logging.ALL_TENANTS)
    assert len(trail.query(tenant_id="t").logs) == 1


def test_a_tenant_s_reader_finds_what_the_tenant_s_queries_find(filled):
    trail, events = filled
    reader = trail.for_tenant("t")
    wanted = [event for event in events if event.tenant_id == "t"]
    page = reader.query(limit=7, action="course.*")
    assert page == trail.query(tenant_id="t", limit=7, action="course.*")
    assert list(reader.iter(limit=30)) == wanted
    rest = list(reader.iter(cursor=page.next_cursor, action="course.*"))
    assert page.logs + rest == [event for event in wanted if event.action.startswith("course.")]

    async def main():
        every = [event async for event in reader.aiter(limit=30, cursor=None, actor_id="u1")]
        return await reader.aquery(limit=3), every

    page, every = asyncio.run(main())
    assert page.logs == wanted[:3]
    assert every == [event for event in wanted if event.actor_id == "u1"]


def test_a_tenant_s_reader_has_no_way_to_anything_else(filled):
    trail, events = filled
    reader = trail.for_tenant("other")
    public = [name for name in dir(reader) if not name.startswith("_")]
    assert public == ["aiter", "aquery", "iter", "query", "tenant_id"]
    for scope in ("t", None, ALL_TENANTS):
        with pytest.raises(TypeError, match="tenant_id"):
            reader.query(tenant_id=scope)
        with pytest.raises(TypeError, match="tenant_id"):
            list(reader.iter(tenant_id=scope))
    with pytest.raises(AttributeError):
        reader.tenant_id = "t"
    with pytest.raises(AttributeError):
        reader.more = "t"
    # Cursors of others say where to go on, not whose events.
    for scope in ("t", None, ALL_TENANTS):
        cursor = trail.query(tenant_id=scope, limit=5).next_cursor
        found = list(reader.iter(cursor=cursor))
        assert found
        assert all(event in events and event.tenant_id == "other" for event in found)
    assert (reader.tenant_id, repr(reader)) == ("other", "TenantReader(tenant_id='other')")


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("tenant", ["", None, ALL_TENANTS, 7, b"t", ["t"]])
def test_a_reader_is_of_one_tenant(make_trail, tenant, required):
    trail = make_trail(require_tenant_id=required)
    with pytest.raises(QueryError, match=r"tenant_id=.*: allowed is the id of one tenant"):
        trail.for_tenant(tenant)


def test_a_tenant_s_reader_finds_an_id_that_had_to_be_cleaned(make_trail, make_logger):
    trail = make_trail()
    AuditLogger(make_logger(trail.handler)).fire("a", tenant_id="t\ud800")
    assert trail.flush(20)
    reader = trail.for_tenant("t\ud800")
    (event,) = reader.query().logs
    assert reader.tenant_id == event.tenant_id != "t\ud800"


def test_a_filter_that_does_not_exist_is_refused(filled):
    for name in ("actor", "start", "id; DROP TABLE audit_logs"):
        with pytest.raises(TypeError, match=f"no argument '{name}'; its filters are action, "):
            filled[0].query(**{name: "u1"})


def test_an_older_table_is_brought_up_to_date(tmp_path, make_trail):
    import sqlite3

    connection = sqlite3.connect(tmp_path / "audit.db")
    connection.execute(
        "CREATE TABLE audit_logs (id TEXT, created_at TEXT NOT NULL, action TEXT NOT NULL,"
        " actor_id TEXT NOT NULL, tenant_id TEXT)"
    )
    connection.execute(
        "INSERT INTO audit_logs VALUES ('1', '2020-01-01T00:00:00.000000Z', 'a', 'u', 't')"
    )
    connection.commit()
    connection.close()
    trail = make_trail()
    assert trail.ready()
    assert trail.query(tenant_id="t").logs == [
        AuditEvent("1", "2020-01-01T00:00:00.000000Z", "a", "u", "t")
    ]


def test_days_are_of_the_tenant_as_it_is_stored(make_trail, make_logger):
    tenants = {"acme\0": 36_500, "x" * 3000: 36_500}
    trail = make_trail(retention={"days": 1, "tenants": tenants})
    logger = make_logger(trail.handler)
    for tenant in (*tenants, "other"):
        record = logging.makeLogRecord({"msg": "a", "tenant_id": tenant, "levelno": logging.INFO})
        record.created -= 10 * 86_400
        logger.handle(record)
    assert trail.flush(20)
    assert sum(trail.prune().values()) == 1
    assert {len(trail.query(tenant_id=tenant).logs) for tenant in tenants} == {1}


def test_a_database_that_comes_late_gets_everything(make_trail, make_logger, tmp_path):
    (tmp_path / "db").write_text("a file where the folder should be")
    trail = make_trail(
        adapter=f"sqlite:///{tmp_path}/db/audit.db",
        retry={"base_delay": 0.01, "max_retries": 10},
    )
    AuditLogger(make_logger(trail.handler)).fire("early")
    assert not trail.ready(timeout=0.2)
    with pytest.raises(NotReadyError) as raised:
        trail.query()
    assert raised.value.__cause__ is not None
    assert wait_until(lambda: trail.stats()["bootstrap_failures"] > 0)
    (tmp_path / "db").unlink()
    assert wait_until(lambda: trail.flush(5) and trail.run_maintenance() and trail.query().logs, 30)


def test_figures_tell_what_is_where(make_trail, make_logger):
    adapter = MemoryAdapter()
    adapter.gate.clear()
    trail = make_trail(adapter=adapter, mode="durable")
    audit = AuditLogger(make_logger(trail.handler))
    for _ in range(3):
        audit.fire("a", tenant_id="t")
    stats = trail.stats()
    assert (stats["accepted"], stats["queued"], stats["queued_by_tenant"]) == (3, 3, {"t": 3})
    assert stats["queued_bytes"] > 3 * 100
    assert stats["wal"]["bytes"] > 3 * 100
    assert stats["wal"]["oldest"].startswith("20")
    adapter.gate.set()
    assert trail.flush(20)
    stats = trail.stats()
    assert (stats["inserted"], stats["queued"], stats["queued_bytes"]) == (3, 0, 0)
    assert stats["wal"]["oldest"] is None


def test_ids_rise_over_all_threads():
    found = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda ids=ids: ids.extend(new_event_id() for _ in range(5000)))
        for ids in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == sorted(ids) for ids in found)
    assert len({name for ids in found for name in ids}) == 20_000


EVENTS = 100_000


def check_all_there(trail, threads):
    assert trail.flush(120)
    seen = {}
    for event in trail.iter(tenant_id=ALL_TENANTS, limit=1000):
        seen.setdefault((event.tenant_id, event.actor_id), []).append(int(event.entity_id))
    assert sum(map(len, seen.values())) == EVENTS
    for numbers in seen.values():
        assert numbers[::-1] == sorted(set(numbers))
    assert len({actor for _, actor in seen}) == threads


@pytest.mark.slow
def test_a_hundred_thousand_events_of_eight_threads(make_trail, make_logger):
    trail = make_trail(mode="durable")
    audit = AuditLogger(make_logger(trail.handler))

    def work(thread):
        for number in range(EVENTS // 8):
            audit.fire("a", tenant_id=f"t{number % 5}", actor_id=str(thread), entity_id=str(number))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_all_there(trail, 8)


@pytest.mark.slow
def test_a_hundred_thousand_events_of_a_thousand_tasks(make_trail, make_logger):
    trail = make_trail()
    audit = AuditLogger(make_logger(trail.handler))

    async def work(task):
        for number in range(EVENTS // 1000):
            audit.fire("a", tenant_id=f"t{number % 5}", actor_id=str(task), entity_id=str(number))
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*(work(task) for task in range(1000)))

    asyncio.run(main())
    check_all_there(trail, 1000)


def test_a_payload_decodes_to_the_event(make_trail, make_logger):
    trail = make_trail()
    records = []
    log = make_logger(trail.handler)
    trail.handler.addFilter(lambda record: records.append(record) or True)
    AuditLogger(log).fire("a", actor_id="u")
    assert isinstance(records[0], logbun_logging.AuditRecord)
    assert records[0].event == decode_event(records[0].entry.payload)
    assert trail.flush(20)
    assert trail.query().logs == [records[0].event]


def test_a_second_open_trail_of_a_namespace_is_reported(make_trail, tmp_path):
    happened = []
    options = {
        "adapter": f"sqlite:///{tmp_path}/a.db",
        "on_event": lambda *what: happened.append(what),
    }
    make_trail(**options).shutdown()
    second = make_trail(**options)
    assert second.pipeline.reporter.drain(20)
    assert happened == []  # as dictConfig does it: the first has been closed
    third = make_trail(**options)
    assert third.pipeline.reporter.drain(20)
    assert [name for name, _ in happened] == ["namespace_taken_over"]


def test_a_query_after_the_end_opens_the_database_and_closes_it_again(
    make_trail, make_logger, tmp_path
):
    trail = make_trail()
    make_logger(trail.handler).info("a")
    trail.shutdown()
    for _ in range(2):
        assert [event.action for event in trail.query().logs] == ["a"]
    assert trail.prune(dry_run=True) == {}
    open_files = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert not [path for path in open_files if path.is_relative_to(tmp_path)]


def test_a_trail_that_has_been_shut_down_is_kept_only_while_events_wait_in_it(tmp_path):
    kept = []
    for mode in ("durable", "volatile"):
        trail = AuditTrail(
            namespace=f"kept-{mode}", mode=mode, data_dir=tmp_path, adapter=MemoryAdapter()
        )
        log = logging.getLogger(f"test.kept.{mode}")
        log.addHandler(trail.handler)
        log.warning("in time")
        trail.shutdown()
        log.warning("late")
        log.handlers.clear()
        kept.append(weakref.ref(trail))
        del trail
    gc.collect()
    assert kept[0]() is None
    assert kept[1]() is not None
    adapter = MemoryAdapter()
    with AuditTrail(namespace="kept-volatile", data_dir=tmp_path, adapter=adapter) as following:
        assert following.flush(20)
    gc.collect()
    assert [event.action for event in adapter.events.values()] == ["late"]
    assert kept[1]() is None


READER_CALLS = """
from typing import Unpack
from logbun_logging import Page, QueryFilters, TenantReader, get_trail
reader: TenantReader = get_trail("app").for_tenant("t1")
def search(**filters: Unpack[QueryFilters]) -> Page:
    return reader.query(limit=5, cursor=None, **filters)
async def actions() -> list[str]:
    return [event.action async for event in reader.aiter(action=["a", "b.*"])]
"""


def test_the_type_checker_finds_what_a_reader_does_not_have(tmp_path):
    wrong = {
        'reader.query(tenant_id="t2")': "call-arg",
        'search(actor="u")': "call-arg",
        'get_trail("app").query(actor="u")': "call-arg",
        'get_trail("app").for_tenant(None)': "arg-type",
        "reader.pipeline": "attr-defined",
    }
    sample = tmp_path / "sample.py"
    sample.write_text(READER_CALLS + "\n".join(wrong) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(sample)]
    out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    first = READER_CALLS.count("\n") + 1
    for number, code in enumerate(wrong.values(), first):
        assert re.search(rf"sample.py:{number}: error: .*\[{code}\]", out), out
    assert out.count(": error: ") == len(wrong), out
