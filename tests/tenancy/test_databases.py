"""A database for each tenant, in real SQLite files: everything arrives where it belongs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from logbun_logging import (
    AdapterUnavailableError,
    AuditTrail,
    ConfigurationError,
    NotReadyError,
    RejectedEventsError,
    TenantRequiredError,
)
from logbun_logging._engine.delivery import Delivery, Verdict
from logbun_logging._process.counters import Counters
from logbun_logging._tenancy import pool as pool_module
from logbun_logging._tenancy.databases import NoDatabaseError, SingleDatabase
from logbun_logging._tenancy.pool import TenantPool
from logbun_logging._tenancy.registry import TenantRegistry
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.errors import BusyError, NoAnswerError, QueryError
from logbun_logging.event import AuditEvent, encode_event
from logbun_logging.options import PoolOptions
from tests.fakes import MemoryAdapter

#: CPython 3.12 and newer warn of what these tests are about.
in_a_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def wait_until(condition, timeout=10.0):
    """Look again and again until *condition* holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


class Watched(SQLiteAdapter):
    """A SQLite adapter that knows whether it is open, and complains when closed under its user."""

    open_now: ClassVar[set[Path]] = set()
    most_open = 0
    violations: ClassVar[list[str]] = []
    lock = threading.Lock()

    @classmethod
    def forget(cls):
        cls.open_now, cls.most_open, cls.violations = set(), 0, []

    def __init__(self, path, **options):
        super().__init__(path, **options)
        self.users = 0
        self.inits = 0
        self.closes = 0

    def init(self):
        super().init()
        with self.lock:
            self.inits += 1
            if self.path in self.open_now:
                self.violations.append(f"{self.path} was opened twice")
            self.open_now.add(self.path)
            Watched.most_open = max(Watched.most_open, len(self.open_now))

    def close(self):
        with self.lock:
            self.closes += 1
            if self.users:
                self.violations.append(f"{self.path} was closed under its user")
            self.open_now.discard(self.path)
        super().close()

    def bulk_insert_many(self, batches):
        with self.lock:
            self.users += 1
        try:
            return super().bulk_insert_many(batches)
        finally:
            with self.lock:
                self.users -= 1


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Makers:
    """Resolvers and pools of a test, and what they were asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked: list[str] = []
        self.made: dict[str, list[Watched]] = defaultdict(list)
        self.reports: list[tuple[str, BaseException]] = []
        self.clock = Clock()
        self.pools: list[TenantPool] = []

    def path(self, tenant: str) -> Path:
        return self.folder / "db" / f"{tenant}.db"

    def resolve(self, tenant: str) -> Watched:
        self.asked.append(tenant)
        adapter = Watched(self.path(tenant))
        self.made[tenant].append(adapter)
        return adapter

    def pool(self, resolve=None, *, most=2, patience=5.0, idle=300.0, known=()) -> TenantPool:
        pool = TenantPool(
            resolve or self.resolve,
            options=PoolOptions(max_active_connections=most, idle_timeout=idle),
            registry=TenantRegistry(self.folder / "tenants.ndjson"),
            patience=patience,
            known=known,
            report=lambda name, error: self.reports.append((name, error)),
            clock=self.clock,
        )
        self.pools.append(pool)
        return pool

    def rows(self, tenant: str) -> list[tuple[str | None, str]]:
        with closing(sqlite3.connect(self.path(tenant))) as database:
            return database.execute(
                "SELECT tenant_id, action FROM audit_logs ORDER BY id"
            ).fetchall()


@pytest.fixture
def makers(tmp_path):
    Watched.forget()
    made = Makers(tmp_path)
    yield made
    for pool in made.pools:
        pool.close()
    assert Watched.violations == []


@pytest.fixture
def make_trail(tmp_path, makers):
    trails = []

    def make(resolve=None, **options):
        options.setdefault("retry", {"max_retries": 0, "base_delay": 0.0, "first_scan": 3600})
        trail = AuditTrail(
            namespace="per-tenant",
            data_dir=tmp_path / "data",
            tenancy={
                "mode": "database_per_tenant",
                "resolve_connection": resolve or makers.resolve,
            },
            **options,
        )
        logger = logging.Logger("audit")  # noqa: LOG001 - one of its own for each trail
        logger.addHandler(trail.handler)
        trail.log = lambda tenant, action="a.b": logger.info(action, extra={"tenant_id": tenant})
        trails.append(trail)
        return trail

    yield make
    for trail in trails:
        trail.shutdown(10)


def event(tenant: str, number: int = 0) -> AuditEvent:
    return AuditEvent(
        id=f"01900000-0000-7000-8000-{number:012x}",
        created_at="2026-01-01T00:00:00.000000Z",
        action="a.b",
        actor_id="x",
        tenant_id=tenant,
    )


# ── everything arrives where it belongs ──


def test_tenants_whose_ids_look_alike_have_databases_of_their_own(make_trail, tmp_path):
    paths = {"a": "1", "A": "2", "a ": "3", "../a": "4", "é": "5", "e\u0301": "6", "none": "7"}
    trail = make_trail(lambda tenant: f"sqlite:///{tmp_path}/{paths[tenant]}.db")
    for tenant in paths:
        trail.log(tenant)
    assert trail.flush(30)
    for tenant, name in paths.items():
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as database:
            assert database.execute("SELECT tenant_id FROM audit_logs").fetchall() == [(tenant,)]


def test_what_a_killed_process_left_goes_to_the_tenants_databases(make_trail, makers, tmp_path):
    script = f"""
import logging, os, time
from logbun_logging import AuditTrail
def resolve(tenant):
    time.sleep(60)
trail = AuditTrail(namespace="per-tenant", data_dir={str(tmp_path / "data")!r}, mode="durable",
    tenancy={{"mode": "database_per_tenant", "resolve_connection": resolve}})
logger = logging.Logger("audit"); logger.addHandler(trail.handler)
for number in range(30):
    logger.info(f"t{{number % 3}}.{{number}}", extra={{"tenant_id": f"t{{number % 3}}"}})
os._exit(9)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, timeout=60)
    assert done.returncode == 9
    trail = make_trail(mode="durable")
    assert trail.ready()
    trail.run_maintenance()
    assert trail.flush(30)
    for tenant in ("t0", "t1", "t2"):
        rows = makers.rows(tenant)
        assert [row[0] for row in rows] == [tenant] * 10
        assert all(row[1].startswith(tenant) for row in rows)


@in_a_fork
def test_a_forked_child_opens_the_databases_anew(make_trail, makers):
    trail = make_trail(mode="durable")
    trail.log("t1", "parent.before")
    assert trail.flush(30)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Watched.forget()
            trail.log("t1", "child.one")
            trail.log("t2", "child.two")
            status = 0 if trail.shutdown(30) and not Watched.violations else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    trail.log("t1", "parent.after")
    assert trail.flush(30)
    assert sorted(row[1] for row in makers.rows("t1")) == [
        "child.one",
        "parent.after",
        "parent.before",
    ]
    assert [row[1] for row in makers.rows("t2")] == ["child.two"]


def test_a_fork_leaves_adapters_that_do_not_know_of_forks_unclosed(makers):
    closed = []

    class Plain:
        init = bulk_insert = query = prune = lambda *_, **__: None

        def close(self):
            closed.append(self)

    adapter = Plain()
    pool = makers.pool(lambda _: adapter)
    with pool.lease("t1"):
        pass
    pool.after_fork()  # as if this were the child
    pool.close()
    assert closed == []
    assert pool.figures()["open"] == 0


# ── reading makes nothing ──


def test_asking_for_an_unknown_tenant_makes_no_file(make_trail, makers, tmp_path):
    trail = make_trail(retention={"days": 1, "tenants": {"listed": 3}})
    trail.log("known")
    assert trail.flush(30)
    assert trail.query(tenant_id="unknown").logs == []
    assert trail.query(tenant_id="unknown").next_cursor is None
    assert list(trail.iter(tenant_id="unknown", action="a.*")) == []
    assert trail.prune(dry_run=True) == trail.prune() == {"known": 0, "listed": 0}
    assert trail.stats()["retention_failures"] == 0
    assert {path.name for path in (tmp_path / "db").glob("*.db")} == {"known.db"}
    assert "unknown" not in (tmp_path / "data" / "per-tenant" / "tenants.ndjson").read_text()
    trail.log("unknown")
    assert trail.flush(30)
    assert [event.action for event in trail.query(tenant_id="unknown").logs] == ["a.b"]


def test_a_database_that_was_deleted_is_not_made_again_by_pruning(make_trail, makers):
    trail = make_trail(retention={"days": 1})
    trail.log("gone")
    assert trail.flush(30)
    trail.shutdown(10)
    for path in makers.path("gone").parent.iterdir():
        path.unlink()
    trail = make_trail(retention={"days": 1})
    assert trail.prune() == {"gone": 0}
    assert trail.query(tenant_id="gone").logs == []
    assert not makers.path("gone").exists()


def test_who_writes_is_not_told_that_a_reader_has_found_nothing(makers):
    resolving, go_on = threading.Event(), threading.Event()

    def resolve(tenant):
        if not resolving.is_set():
            resolving.set()
            assert go_on.wait(10)
        return makers.resolve(tenant)

    pool = makers.pool(resolve)
    found = []

    def read():
        with pytest.raises(NoDatabaseError, match="'t'"), pool.lease("t", create=False):
            pass
        found.append("nothing")

    def write():
        with pool.lease("t") as target:
            found.append(target.adapter.exists())

    threads = [threading.Thread(target=work) for work in (read, write)]
    threads[0].start()
    assert resolving.wait(10)
    threads[1].start()
    wait_until(lambda: pool._slots["t"].users == 2)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert sorted(found, key=str) == [True, "nothing"]
    assert pool.figures() == {"open": 1, "in_use": 0, "down": 0}


# ── tenants ──


def test_a_query_without_a_tenant_raises(make_trail):
    trail = make_trail()
    with pytest.raises(TenantRequiredError):
        trail.query()


def test_nothing_is_lent_without_a_tenant(makers):
    with pytest.raises(QueryError, match="tenant"), makers.pool().lease(None):
        pass
    assert makers.asked == []


def test_an_event_without_a_tenant_is_dead_lettered_and_never_delivered(make_trail, makers):
    retry = {"max_retries": 0, "scan_interval": 0.05, "max_scan_attempts": 2, "first_scan": 3600}
    trail = make_trail(retry=retry)
    trail.log(None)
    trail.log("t1")
    assert trail.flush(30)
    assert trail.stats()["refused"] == 1

    def dead():
        trail.run_maintenance()
        return trail.stats()["dlq"]["dead_events"] == 1

    wait_until(dead)
    assert makers.asked == ["t1"]


# ── the resolver ──


def test_a_coroutine_function_resolves(make_trail, makers):
    async def resolve(tenant):
        await asyncio.sleep(0)
        return {"type": "sqlite", "path": str(makers.path(tenant))}

    trail = make_trail(resolve)
    trail.log("t1")
    assert trail.flush(30)
    assert makers.rows("t1") == [("t1", "a.b")]
    assert len(trail.query(tenant_id="t1").logs) == 1


def test_queries_from_an_event_loop_use_an_asynchronous_resolver(make_trail, makers):
    async def resolve(tenant):
        await asyncio.sleep(0)
        return makers.resolve(tenant)

    async def ask():
        await trail.aquery(tenant_id="t1")
        return trail.query(tenant_id="t1")  # blocks this loop, and needs another one

    trail = make_trail(resolve)
    assert asyncio.run(ask()).logs == []


def test_a_failing_resolver_costs_retries_then_the_dlq_and_heals(make_trail, makers):
    down = True

    def resolve(tenant):
        makers.asked.append(tenant)
        if down and tenant == "t1":
            raise RuntimeError("the control plane is away")
        return SQLiteAdapter(makers.path(tenant))

    trail = make_trail(
        resolve, retry={"max_retries": 1, "base_delay": 0.0, "first_scan": 3600}, mode="durable"
    )
    trail.log("t1", "one")
    trail.log("t2", "two")
    assert trail.flush(30)
    assert makers.asked.count("t1") == 2
    assert makers.rows("t2") == [("t2", "two")]
    (file,) = trail.dlq.list()
    assert "the control plane is away" in file.envelope.reason
    trail.run_maintenance()
    (file,) = trail.dlq.list()
    assert file.envelope.attempts == 0, "an outage is not held against the batch"
    with pytest.raises(NotReadyError, match="control plane"):
        trail.query(tenant_id="t1")
    down = False
    wait_until(lambda: (trail.run_maintenance(), trail.dlq.is_empty())[1], 20)
    assert makers.rows("t1") == [("t1", "one")]
    assert makers.rows("t2") == [("t2", "two")]


def test_events_of_a_tenant_that_the_resolver_denies_end_up_dead(make_trail, makers):
    def resolve(tenant):
        if tenant == "nobody":
            raise RejectedEventsError("no such tenant")
        return makers.resolve(tenant)

    trail = make_trail(
        resolve, retry={"max_retries": 0, "max_scan_attempts": 1, "first_scan": 3600}
    )
    trail.log("nobody", "one")
    trail.log("t2", "two")
    assert trail.flush(30)
    trail.run_maintenance()
    (file,) = trail.dlq.list()
    assert (file.state, file.envelope.reason) == (
        "dead",
        "RejectedEventsError: tenant 'nobody': no such tenant",
    )
    assert makers.rows("t2") == [("t2", "two")]
    with pytest.raises(RejectedEventsError, match="no such tenant"):
        trail.query(tenant_id="nobody")


@pytest.mark.parametrize("answer", [None, "nonsense", 42, {"type": "paper"}, SQLiteAdapter])
def test_an_answer_that_is_no_database_is_an_error_and_the_events_are_kept(
    make_trail, makers, answer
):
    trail = make_trail(lambda tenant: answer if tenant == "t1" else makers.resolve(tenant))
    trail.log("t1")
    trail.log("t2")
    assert trail.flush(30)
    assert trail.stats()["dlq"]["pending_events"] == 1
    assert makers.rows("t2") == [("t2", "a.b")]
    with pytest.raises(ConfigurationError, match=r"tenancy\.resolve_connection"):
        trail.query(tenant_id="t1")


@pytest.mark.parametrize(
    "answer",
    [
        "paper://user:s3cret@host/db",
        "paper://host?auth_token=s3cret&x=1",
        {"type": "paper", "auth_token": "s3cret"},
        {"type": "sqlite", "password": "s3cret"},
    ],
)
def test_an_answer_that_is_no_database_gives_no_secret_away(make_trail, answer):
    trail = make_trail(lambda _: answer)
    trail.log("t1")
    assert trail.flush(30)
    (file,) = trail.dlq.list()
    assert "tenancy.resolve_connection" in file.envelope.reason
    assert "s3cret" not in file.envelope.reason


def test_an_adapter_for_a_single_database_is_refused_with_the_reason(makers):
    class Columnar(SQLiteAdapter):
        single_database_only = True

    pool = makers.pool(lambda tenant: Columnar(makers.path(tenant)))
    with (
        pytest.raises(ConfigurationError, match=r"Columnar.*all tenants in one table"),
        pool.lease("t"),
    ):
        pass
    assert pool.figures()["open"] == 0


def test_a_resolver_that_ends_the_thread_holds_no_connection(makers):
    def resolve(tenant):
        raise SystemExit(tenant)

    pool = makers.pool(resolve, most=1)
    for tenant in ("t1", "t2"):
        with pytest.raises(AdapterUnavailableError, match="SystemExit"), pool.lease(tenant):
            pass


def test_a_slow_resolver_delays_its_own_tenant_only(makers):
    release = threading.Event()

    def resolve(tenant):
        if tenant == "slow":
            release.wait(30)
        return makers.resolve(tenant)

    pool = makers.pool(resolve, patience=0.05)
    with (
        pytest.raises(AdapterUnavailableError, match=r"'slow' is still opening after 0.05 s"),
        pool.lease("slow"),
    ):
        pass
    pool._patience = 5.0
    with pool.lease("fast") as target:
        target.adapter.bulk_insert("fast", [event("fast")])
    release.set()
    wait_until(lambda: pool.figures()["open"] == 2)
    with pool.lease("slow"):
        assert makers.asked == ["fast", "slow"], "what was opened too late is there for the next"


# ── the pool ──


def test_many_threads_open_a_tenants_database_once(makers):
    barrier = threading.Barrier(16)
    lent = []

    def use():
        barrier.wait()
        with pool.lease("t1") as target:
            lent.append(target.adapter)

    pool = makers.pool()
    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert makers.asked == ["t1"]
    assert len(lent) == 16
    assert len(set(lent)) == 1


def test_all_who_wait_for_the_same_database_hear_of_its_failure(makers):
    entered, release = threading.Event(), threading.Event()
    errors = []

    def resolve(tenant):
        makers.asked.append(tenant)
        entered.set()
        release.wait(10)
        raise OSError("no route")

    def use():
        try:
            with pool.lease("t1"):
                pass
        except AdapterUnavailableError as error:
            errors.append(error)

    pool = makers.pool(resolve)
    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    entered.wait(10)
    wait_until(lambda: pool.figures()["in_use"] and pool._slots["t1"].users == 4)
    release.set()
    for thread in threads:
        thread.join(10)
    assert makers.asked == ["t1"]
    assert len(errors) == 4
    assert len(set(map(id, errors))) == 4, "each thread has an error of its own"
    assert all(isinstance(error.__cause__, OSError) for error in errors)


def test_the_least_recently_used_is_closed(makers):
    pool = makers.pool(most=2)
    for tenant in ("t1", "t2", "t1", "t3"):
        with pool.lease(tenant):
            pass
    assert makers.made["t2"][0].closes == 1
    assert makers.made["t1"][0].closes == 0
    assert pool.figures()["open"] == 2
    with pool.lease("t2"):
        assert makers.asked == ["t1", "t2", "t3", "t2"]
    assert Watched.most_open == 2


def test_one_in_use_is_not_closed_though_it_is_the_least_recently_used(makers):
    pool = makers.pool(most=2)
    with pool.lease("t1") as target:
        for tenant in ("t2", "t3", "t4"):
            with pool.lease(tenant):
                pass
        target.adapter.bulk_insert("t1", [event("t1")])
    assert makers.made["t1"][0].closes == 0
    assert makers.rows("t1") == [("t1", "a.b")]


def test_a_full_pool_waits_for_a_connection_instead_of_failing(makers):
    pool = makers.pool(most=1)
    got = threading.Event()

    def use():
        with pool.lease("t2"):
            got.set()

    with pool.lease("t1"):
        thread = threading.Thread(target=use)
        thread.start()
        wait_until(lambda: pool._waiting == 1)
        assert not got.is_set()
    assert got.wait(10)
    thread.join()
    assert makers.made["t1"][0].closes == 1


def test_nobody_waits_for_a_connection_for_ever(makers):
    pool = makers.pool(most=1)
    with pool.lease("t1"):
        pool._patience = 0.05
        with (
            pytest.raises(BusyError, match=r"all 1 connections \(pool.max_active_connections\)"),
            pool.lease("t2"),
        ):
            pass
        with pool.lease("t1"):
            pass
    pool._patience = 5.0
    with pool.lease("t2"):
        pass


def test_a_full_pool_says_nothing_of_a_tenants_own_database(makers):
    pool = makers.pool(most=1)
    delivery = Delivery(pool, Counters(), 5.0, lambda: None)
    with pool.lease("t1"):
        pool._patience = 0.01
        for _ in range(5):
            outcome = delivery.attempt([("t2", [encode_event(event("t2"))])])
            assert outcome.verdict is Verdict.OUTAGE
    assert not pool.breaker("t2").is_open
    pool._patience = 5.0
    assert delivery.attempt([("t2", [encode_event(event("t2"))])]).verdict is Verdict.STORED
    delivery.close()


def test_unused_databases_are_closed_after_the_idle_timeout(makers):
    pool = makers.pool(most=5, idle=60)
    with pool.lease("t1"):
        pass
    makers.clock.now = 30
    with pool.lease("t2"):
        pass
    makers.clock.now = 61
    with pool.lease("used"):
        pool.maintain()
        wait_until(lambda: makers.made["t1"][0].closes == 1)
        makers.clock.now = 1000
        pool.maintain()
        wait_until(lambda: makers.made["t2"][0].closes == 1)
        assert makers.made["used"][0].closes == 0
    assert pool.figures()["open"] == 1


def test_releasing_a_database_looks_after_the_unused_too(makers):
    pool = makers.pool(most=5, idle=60)
    with pool.lease("t1"):
        pass
    makers.clock.now = 61
    with pool.lease("t2"):
        pass
    wait_until(lambda: makers.made["t1"][0].closes == 1)


def test_threads_that_use_many_tenants_never_see_another_tenants_database(makers):
    pool = makers.pool(most=3)
    wrong = []

    def use(seed):
        for number in range(25):
            tenant = f"t{(seed * 7 + number * 3) % 11}"
            with pool.lease(tenant) as target:
                if target.adapter.path != makers.path(tenant):
                    wrong.append(tenant)
                target.adapter.bulk_insert(tenant, [event(tenant, seed * 1000 + number)])

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert Watched.most_open <= 3
    rows = [row for number in range(11) for row in makers.rows(f"t{number}")]
    assert len(rows) == 6 * 25
    for number in range(11):
        assert {row[0] for row in makers.rows(f"t{number}")} <= {f"t{number}"}


def test_tenants_may_have_the_same_adapter_object(makers):
    shared = Watched(makers.path("shared"))
    pool = makers.pool(lambda tenant: shared if tenant != "other" else makers.resolve(tenant))
    with pool.lease("t1") as one, pool.lease("t2") as two:
        assert one.adapter is two.adapter
        one.adapter.bulk_insert("t1", [event("t1", 1)])
    assert shared.inits == 1
    with pool.lease("t2"):
        with pool.lease("other"):  # t1 has to go, and t2 still uses what was t1's as well
            pass
        assert shared.closes == 0
    pool.close()
    assert shared.closes == 1
    with pool.lease("t1"):
        assert shared.inits == 2


def test_tenants_may_have_the_same_file(make_trail, makers):
    trail = make_trail(lambda _: f"sqlite:///{makers.path('shared')}")
    for tenant in ("t1", "t2"):
        trail.log(tenant, f"{tenant}.a")
    assert trail.flush(30)
    for tenant in ("t1", "t2"):
        assert [found.action for found in trail.query(tenant_id=tenant).logs] == [f"{tenant}.a"]


def test_a_database_that_cannot_be_opened_is_closed_again(makers):
    class Broken(Watched):
        def init(self):
            raise OSError("no such host")

    adapter = Broken(makers.path("t1"))
    pool = makers.pool(lambda _: adapter)
    for _ in range(2):
        with pytest.raises(AdapterUnavailableError, match="no such host"), pool.lease("t1"):
            pass
    assert adapter.closes == 2
    assert pool._connections == {}


def test_an_adapter_that_fails_to_close_is_reported_and_its_place_is_free(makers):
    class Sticky(Watched):
        def close(self):
            super().close()
            raise OSError("still busy")

    pool = makers.pool(lambda tenant: Sticky(makers.path(tenant)), most=1)
    for tenant in ("t1", "t2"):
        with pool.lease(tenant):
            pass
    assert [name for name, _ in makers.reports] == ["close_failed"]


def test_closing_waits_for_no_user_and_the_last_one_closes(makers):
    pool = makers.pool()
    with pool.lease("t2"):
        pass
    with pool.lease("t1") as target:
        pool.close()
        assert makers.made["t2"][0].closes == 1
        assert makers.made["t1"][0].closes == 0
        target.adapter.bulk_insert("t1", [event("t1")])
    wait_until(lambda: makers.made["t1"][0].closes == 1)


def test_what_is_still_being_opened_at_the_end_is_closed_when_it_is(makers):
    release = threading.Event()

    def resolve(tenant):
        release.wait(10)
        return makers.resolve(tenant)

    pool = makers.pool(resolve, patience=0.01)
    with pytest.raises(AdapterUnavailableError), pool.lease("t1"):
        pass
    pool.close()
    release.set()
    wait_until(lambda: makers.made["t1"] and makers.made["t1"][0].closes == 1)
    wait_until(lambda: pool.figures()["open"] == 0)


def test_a_lease_waits_until_the_same_tenants_database_is_closed(makers):
    closing_now, release = threading.Event(), threading.Event()

    class Slow(Watched):
        def close(self):
            closing_now.set()
            release.wait(10)
            super().close()

    pool = makers.pool(lambda tenant: Slow(makers.path(tenant)), most=2, idle=60)
    with pool.lease("t1"):
        pass
    makers.clock.now = 61
    pool.maintain()
    closing_now.wait(10)
    threading.Timer(0.05, release.set).start()
    with pool.lease("t1") as target:
        assert target.adapter.closes == 0
        assert release.is_set()


def test_pool_work_is_done_in_place_where_no_thread_can_start(makers, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(pool_module.threading.Thread, "start", refuse)
    pool = makers.pool(most=1)
    for tenant in ("t1", "t2"):
        with pool.lease(tenant) as target:
            target.adapter.bulk_insert(tenant, [event(tenant)])
    pool.close()
    assert Watched.open_now == set()
    broken = makers.pool(lambda _: None)
    with pytest.raises(ConfigurationError), broken.lease("t1"):
        pass


# ── health ──


def test_a_circuit_stays_open_when_the_database_is_closed_for_room(makers):
    pool = makers.pool(most=1)
    for _ in range(3):
        pool.breaker("t1").failed()
    for tenant in ("t1", "t2", "t3"):
        with pool.lease(tenant):
            pass
    assert pool.breaker("t1").is_open
    assert pool.figures()["down"] == 1


def test_circuits_are_kept_for_so_many_tenants_only(makers, monkeypatch):
    monkeypatch.setattr(pool_module, "_BREAKERS", 3)
    pool = makers.pool()
    first = pool.breaker("t0")
    for number in (1, 2, 0, 3):
        pool.breaker(f"t{number}")
    assert pool.breaker("t0") is first
    assert list(pool._breakers) == ["t2", "t3", "t0"]


def test_one_tenant_that_is_down_makes_the_others_no_less_healthy(makers):
    pool = makers.pool()
    assert pool.healthy()
    for _ in range(3):
        pool.breaker("t1").failed()
    assert not pool.healthy()
    pool.breaker("t2")
    assert pool.healthy()


def test_a_tenant_that_is_down_does_not_keep_back_the_others_dead_letters(make_trail, makers):
    down = {"t1", "t2"}

    def resolve(tenant):
        if tenant in down:
            raise OSError("down")
        return makers.resolve(tenant)

    trail = make_trail(resolve)
    for tenant in ("t1", "t2", "t1"):
        trail.log(tenant)
        assert trail.flush(30)
    down.remove("t2")
    wait_until(lambda: (trail.run_maintenance(), trail.stats()["redelivered"])[1] == 1, 20)
    assert makers.rows("t2") == [("t2", "a.b")]
    files = trail.dlq.list()
    assert [(file.state, file.envelope.tenant_id) for file in files] == [("pending", "t1")] * 2


def test_an_insert_that_hangs_keeps_its_database_open_and_stops_no_other(make_trail, makers):
    release = threading.Event()

    class Hanging(Watched):
        def bulk_insert_many(self, batches):
            if self.path.stem == "t1":
                with self.lock:
                    self.users += 1
                release.wait(30)
                with self.lock:
                    self.users -= 1
                return True
            return super().bulk_insert_many(batches)

    hung = []

    def resolve(tenant):
        adapter = Hanging(makers.path(tenant))
        if tenant == "t1":
            hung.append(adapter)
        return adapter

    trail = make_trail(resolve, insert_timeout=2.0, pool={"max_active_connections": 2})
    trail.log("t1")
    assert trail.flush(30)
    assert trail.stats()["dlq"]["pending_events"] == 1
    for number in range(5):
        trail.log(f"u{number}")
        assert trail.flush(30)
        assert makers.rows(f"u{number}") == [(f"u{number}", "a.b")]
    assert trail.shutdown(10)
    assert hung[0].closes == 0, "its user is not done"
    release.set()
    wait_until(lambda: hung[0].closes == 1)


# ── the tenants' file ──


def test_tenants_are_remembered_across_restarts(makers):
    pool = makers.pool()
    for tenant in ("t2", "t1", "t2"):
        with pool.lease(tenant):
            pass
    pool.close()
    makers.path("t3").touch()
    again = makers.pool(known=["t3"])
    assert [tenant for tenant, _ in again.every()] == ["t1", "t2", "t3"]
    for tenant, lease in again.every():
        with lease as target:
            assert target.adapter.path == makers.path(tenant)


def test_a_tenant_that_does_not_resolve_is_not_remembered(makers):
    pool = makers.pool(lambda _: None)
    with pytest.raises(ConfigurationError), pool.lease("made-up"):
        pass
    assert list(pool.every()) == []


def test_a_tenant_is_written_down_once_by_however_many(tmp_path):
    path = tmp_path / "ns" / "tenants.ndjson"
    one, two = TenantRegistry(path), TenantRegistry(path)
    threads = [
        threading.Thread(target=registry.add, args=(f"t{number % 20}",))
        for number in range(60)
        for registry in (one, two)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().splitlines()
    assert len(lines) == 20
    assert one.tenants() == two.tenants() == sorted(f"t{number}" for number in range(20))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_tenants_with_any_name_come_back(tmp_path):
    names = ["a\nb", "../x", '"', "\u2028", "é", "", "x" * 2000]
    registry = TenantRegistry(tmp_path / "tenants.ndjson")
    for name in names:
        registry.add(name)
    assert TenantRegistry(tmp_path / "tenants.ndjson").tenants() == sorted(names)


def test_a_torn_line_costs_no_other_tenant(tmp_path):
    path = tmp_path / "tenants.ndjson"
    TenantRegistry(path).add("t1")
    with path.open("ab") as file:
        file.write(b'\xff\n{"v": 1, "ten')
    registry = TenantRegistry(path)
    registry.add("t2")
    registry.add("t3")
    assert TenantRegistry(path).tenants() == ["t1", "t2", "t3"]


def test_a_line_of_any_length_is_passed_over_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("logbun_logging._tenancy.registry._PORTION", 64)
    path = tmp_path / "tenants.ndjson"
    TenantRegistry(path).add("t1")
    with path.open("ab") as file:
        file.write(b"x" * 1000)
    registry = TenantRegistry(path)
    registry.add("t2")
    registry.add("t3")
    assert registry.tenants() == TenantRegistry(path).tenants() == ["t1", "t2", "t3"]


def test_queries_for_unknown_tenants_leave_no_trace(makers):
    class Remote(MemoryAdapter):
        """A database that is no file, and so is always there."""

    pool = makers.pool(lambda _: Remote(), most=10)
    for number in range(20):
        with pool.lease(f"unknown{number}", create=False):
            pass
    assert list(pool.every()) == []
    with pool.lease("unknown19"):  # it is open already, and now written to
        pass
    assert [tenant for tenant, _ in pool.every()] == ["unknown19"]


def test_tenants_whose_databases_hang_leave_connections_to_the_others(makers):
    release = threading.Event()

    def resolve(tenant):
        if tenant.startswith("sick"):
            release.wait(30)
        return makers.resolve(tenant)

    pool = makers.pool(resolve, most=4, patience=0.05)
    for number in range(8):
        with pytest.raises(AdapterUnavailableError), pool.lease(f"sick{number}"):
            pass
    pool.breaker("well").succeeded()
    pool._patience = 5.0
    with pool.lease("well") as target:
        target.adapter.bulk_insert("well", [event("well")])
    release.set()
    wait_until(lambda: pool.figures()["open"] >= 3)


def test_who_comes_to_a_database_that_is_opening_for_long_does_not_wait_as_well(makers):
    release = threading.Event()
    pool = makers.pool(lambda tenant: (release.wait(30), makers.resolve(tenant))[1], patience=0.05)
    with pytest.raises(NoAnswerError), pool.lease("t"):
        pass
    slot = pool._slots["t"]
    pool._patience = 20.0
    slot.since -= 20
    with pytest.raises(NoAnswerError, match="still opening"), pool.lease("t"):
        pass
    release.set()
    wait_until(lambda: pool.figures()["open"] == 1)


def test_a_file_that_was_put_in_its_place_is_read_anew(tmp_path):
    path = tmp_path / "tenants.ndjson"
    registry = TenantRegistry(path)
    registry.add("t1")
    registry.add("t2")
    assert registry.tenants() == ["t1", "t2"]
    path.write_text(json.dumps({"v": 1, "tenant_id": "t3"}) + "\n")
    assert registry.tenants() == ["t1", "t2", "t3"]


def test_a_lock_that_is_never_released_delays_only(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr("logbun_logging._tenancy.registry._LOCK_WAIT", 0.03)
    path = tmp_path / "tenants.ndjson"
    path.touch()
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        TenantRegistry(path).add("t1")
    assert TenantRegistry(path).tenants() == ["t1"]


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "tenants.ndjson"
    registry = TenantRegistry(path)
    registry.add("t1")
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:5]))
    with pytest.raises(OSError, match="disk full"):
        registry.add("t2")
    monkeypatch.undo()
    assert path.read_bytes().count(b"\n") == 1
    registry.add("t2")
    assert TenantRegistry(path).tenants() == ["t1", "t2"]


def test_tenants_that_cannot_be_written_down_are_reported_and_served(makers):
    (makers.folder / "tenants.ndjson").mkdir()
    pool = makers.pool()
    with pool.lease("t1") as target:
        target.adapter.bulk_insert("t1", [event("t1")])
    assert makers.rows("t1") == [("t1", "a.b")]
    assert [name for name, _ in makers.reports] == ["registry_failed"]


# ── one database for all ──


def test_a_single_database_that_cannot_be_opened_says_so(tmp_path):
    class Broken(SQLiteAdapter):
        def init(self):
            raise ValueError("of no known kind")

    database = SingleDatabase(Broken(tmp_path / "a.db"))
    with (
        pytest.raises(AdapterUnavailableError, match="ValueError: of no known kind"),
        database.lease("t"),
    ):
        pass
    assert database.figures() == {"open": 0, "down": 0}


def test_a_single_database_is_lent_to_all_and_opened_again_after_closing(tmp_path):
    database = SingleDatabase(SQLiteAdapter(tmp_path / "a.db"))
    with database.lease("t1") as one, database.lease(None) as two:
        assert one is two
    assert database.breaker("t1") is database.breaker(None)
    assert database.healthy()
    assert [tenant for tenant, _ in database.every()] == [None]
    database.maintain()
    assert database.figures() == {"open": 1, "down": 0}
    database.close()
    with database.lease("t1") as target:
        assert target.adapter.bulk_insert("t1", [event("t1")])
    database.close()


def test_a_single_database_says_why_an_adapter_refuses(tmp_path):
    class Refusing(SQLiteAdapter):
        def init(self):
            raise ConfigurationError("adapter.path", self.path, "another one")

    database = SingleDatabase(Refusing(tmp_path / "a.db"))
    with pytest.raises(ConfigurationError, match="another one"), database.lease("t"):
        pass


def test_a_single_database_is_opened_anew_after_a_fork(tmp_path):
    adapter = SQLiteAdapter(tmp_path / "a.db")
    database = SingleDatabase(adapter)
    with database.lease("t1"):
        pass
    for _ in range(3):
        database.breaker(None).failed()
    adapter._connections.suspend()  # as before a fork
    database.after_fork()  # as if this were the child
    assert database.healthy()
    assert database.figures() == {"open": 0, "down": 0}
    with database.lease("t1") as target:
        assert target.adapter.bulk_insert("t1", [event("t1")])
    database.close()
