"""Retention: the right rows, at the right time, by one process of several; clocks are passed in."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import multiprocessing
import os
import sqlite3
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from logbun_logging import (
    AdapterUnavailableError,
    AuditTrail,
    ClockError,
    ConfigurationError,
    PruneError,
)
from logbun_logging._engine.clock import utc_clock
from logbun_logging._engine.reporting import Reporter
from logbun_logging._engine.retention import Retention
from logbun_logging._engine.threads import Threads
from logbun_logging._process.counters import Counters
from logbun_logging._tenancy.databases import SingleDatabase
from logbun_logging._tenancy.pool import TenantPool
from logbun_logging._tenancy.registry import TenantRegistry
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.event import AuditEvent
from logbun_logging.options import PoolOptions, RetentionOptions
from logbun_logging.query import Filters, Pagination
from logbun_logging.testing import MemoryAdapter
from tests.fakes import wait_until

START = datetime(2026, 3, 31, 15, 0, tzinfo=UTC)
_numbers = count()


#: CPython 3.12 and newer warn of what these tests are about.
in_a_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


class Clock:
    """The wall clock, which may be set, and the one that only goes on."""

    def __init__(self, now=START):
        self.now = now
        self.running = 0.0

    def __call__(self):
        return self.now

    def go_on(self, **time):
        self.now += timedelta(**time)
        self.running += timedelta(**time).total_seconds()


def events(tenant, days_ago, number=1, now=START):
    when = (now - timedelta(days=days_ago)).replace(tzinfo=None).isoformat(timespec="microseconds")
    return [
        AuditEvent(
            id=f"01900000-0000-7000-8000-{next(_numbers):012x}",
            created_at=f"{when}Z",
            action=f"kept.{days_ago}",
            actor_id="x",
            tenant_id=tenant,
        )
        for _ in range(number)
    ]


def fill(path, tenant, *days, number=1):
    adapter = SQLiteAdapter(path)
    adapter.init()
    for age in days:
        adapter.bulk_insert(tenant, events(tenant, age, number))
    adapter.close()


def ages(path, tenant):
    """Return the ages in days of what is left of a tenant's events."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT action FROM audit_logs WHERE tenant_id IS ? ORDER BY created_at", (tenant,)
        )
        return [int(row[0].removeprefix("kept.")) for row in rows]


class Process:
    """What one process of the namespace has, with a clock of ours."""

    def __init__(self, folder, clock, databases, **options):
        self.counters = Counters()
        self._heard = []
        self.reporter = Reporter(
            "ns", lambda name, details: self._heard.append((name, details)), self.counters
        )
        self.retention = Retention(
            folder=folder,
            options=RetentionOptions(**options),
            databases=databases,
            counters=self.counters,
            reporter=self.reporter,
            clock=clock,
            running=lambda: clock.running,
        )

    def wake_up(self):
        """Do what the thread does at least once a minute."""
        self.retention.wake_up()

    @property
    def heard(self):
        """What has been reported until now."""
        assert self.reporter.drain(20)
        return self._heard


@pytest.fixture
def make(tmp_path):
    opened = []

    def build(clock=None, *, adapter=None, databases=None, days=90, **options):
        if databases is None:
            databases = SingleDatabase(adapter or SQLiteAdapter(tmp_path / "a.db"))
        opened.append(databases)
        return Process(tmp_path / "ns", clock or Clock(), databases, days=days, **options)

    yield build
    for databases in opened:
        databases.close()


@pytest.fixture
def make_pool(tmp_path):
    def build(resolve=None, known=()):
        return TenantPool(
            resolve or (lambda tenant: SQLiteAdapter(tmp_path / f"{tenant}.db")),
            options=PoolOptions(max_active_connections=2),
            registry=TenantRegistry(tmp_path / "ns" / "tenants.ndjson"),
            patience=5.0,
            known=known,
            report=lambda *_: None,
        )

    return build


class Unreachable(SQLiteAdapter):
    def prune(self, *_, **__):
        raise AdapterUnavailableError("no route to host")


# ── what is pruned ──


def test_older_events_go_and_the_others_stay(make, tmp_path):
    fill(tmp_path / "a.db", "t1", 89, 90, 91, 400)
    fill(tmp_path / "a.db", None, 1, 91)
    process = make()
    assert process.retention.prune() == {None: 3}
    assert ages(tmp_path / "a.db", "t1") == [90, 89]
    assert ages(tmp_path / "a.db", None) == [1]
    assert process.counters["pruned"] == 3


def test_single_tenants_have_days_of_their_own(make, tmp_path):
    for tenant in ("short", "long", "other", None):
        fill(tmp_path / "a.db", tenant, 5, 50, 100, 400)
    process = make(tenants={"short": 7, "long": 365})
    assert process.retention.prune() == {"short": 3, "long": 1, None: 4}
    assert ages(tmp_path / "a.db", "short") == [5]
    assert ages(tmp_path / "a.db", "long") == [100, 50, 5]
    assert ages(tmp_path / "a.db", "other") == ages(tmp_path / "a.db", None) == [50, 5]


def test_days_for_single_tenants_alone_leave_all_others_alone(make, tmp_path):
    for tenant in ("short", "other"):
        fill(tmp_path / "a.db", tenant, 5, 50)
    assert make(days=None, tenants={"short": 7}).retention.prune() == {"short": 1}
    assert ages(tmp_path / "a.db", "other") == [50, 5]


def test_a_dry_run_tells_what_would_go_and_removes_nothing(make, tmp_path):
    fill(tmp_path / "a.db", "t1", 50, 100)
    fill(tmp_path / "a.db", "t2", 50, 100)
    process = make(tenants={"t2": 10})
    assert process.retention.prune(dry_run=True) == {None: 1, "t2": 2}
    assert ages(tmp_path / "a.db", "t1") == [100, 50]
    assert process.counters["pruned"] == 0


def test_without_days_nothing_is_pruned_and_nothing_started(make, tmp_path):
    process = make(days=None)
    assert process.retention.prune() == {}
    threads = Threads(process.counters, process.reporter)
    process.retention.start(threads)
    process.retention.stop(1)
    assert threads._workers == []
    assert not (tmp_path / "ns").exists()


def test_every_tenants_database_is_pruned_after_a_restart(make, make_pool, tmp_path):
    before = make_pool()
    for tenant in ("t1", "t2", "t3"):
        with before.lease(tenant):
            pass
        fill(tmp_path / f"{tenant}.db", tenant, 5, 100)
    before.close()
    process = make(databases=make_pool(), tenants={"t3": 365})
    assert process.retention.prune(dry_run=True) == {"t1": 1, "t2": 1, "t3": 0}
    assert process.retention.prune() == {"t1": 1, "t2": 1, "t3": 0}
    assert [ages(tmp_path / f"t{n}.db", f"t{n}") for n in (1, 2, 3)] == [[5], [5], [100, 5]]
    assert process.counters["pruned"] == 2


def test_a_tenants_database_is_pruned_by_its_own_days_only(make, make_pool, tmp_path):
    """Even where a resolver gives two tenants the same file."""
    pool = make_pool(lambda _: SQLiteAdapter(tmp_path / "same.db"))
    for tenant in ("short", "long"):
        with pool.lease(tenant):
            pass
        fill(tmp_path / "same.db", tenant, 5, 100)
    process = make(databases=pool, days=None, tenants={"short": 10, "long": 365})
    assert process.retention.prune() == {"long": 0, "short": 1}
    assert ages(tmp_path / "same.db", "long") == [100, 5]


def test_tenants_with_no_days_are_not_visited(make, make_pool, tmp_path):
    pool = make_pool(known=["t1"])
    with pool.lease("t2"):
        pass
    process = make(databases=pool, days=None, tenants={"t1": 10})
    assert process.retention.prune() == {"t1": 0}


def test_pruning_lets_writers_in_between_its_steps(make, tmp_path):
    fill(tmp_path / "a.db", "t1", 100, number=20_000)
    process = make()
    pruned = threading.Event()

    def prune():
        try:
            process.retention.prune()
        finally:
            pruned.set()

    writer = SQLiteAdapter(tmp_path / "a.db", busy_timeout=2.0)  # as another process would
    writer.init()
    thread = threading.Thread(target=prune)
    thread.start()
    written = 0
    while not pruned.is_set():
        writer.bulk_insert("t2", events("t2", 1))  # raises when it is locked out
        written += 1
        time.sleep(0.001)
    thread.join()
    writer.close()
    assert process.counters["pruned"] == 20_000
    assert written > 5


def test_rows_that_are_kept_longer_are_passed_once_and_not_with_each_step(make, tmp_path):
    for age in range(100, 130):
        fill(tmp_path / "a.db", "kept", age, number=100)
        fill(tmp_path / "a.db", "gone", age, number=100)
    assert make(tenants={"kept": 3650}).retention.prune() == {"kept": 0, None: 3000}
    assert len(ages(tmp_path / "a.db", "kept")) == 3000


# ── failures ──


def test_a_database_that_fails_is_counted_and_reported_and_the_others_are_pruned(
    make, make_pool, tmp_path
):
    def resolve(tenant):
        kind = Unreachable if tenant == "t2" else SQLiteAdapter
        return kind(tmp_path / f"{tenant}.db")

    for tenant in ("t1", "t2", "t3"):
        fill(tmp_path / f"{tenant}.db", tenant, 100)
    process = make(databases=make_pool(resolve, known=["t1", "t2", "t3"]))
    with pytest.raises(
        PruneError, match=r"1 databases could not be pruned, 2 were \('t2': no route"
    ):
        process.retention.prune()
    assert process.counters["retention_failures"] == 1
    ((name, details),) = process.heard
    assert (name, details["tenant_id"]) == ("retention_failed", "t2")


def test_the_error_has_the_report_of_what_could_be_pruned(make, make_pool, tmp_path):
    def resolve(tenant):
        if tenant == "t2":
            raise OSError("gone")
        return SQLiteAdapter(tmp_path / f"{tenant}.db")

    fill(tmp_path / "t1.db", "t1", 100)
    process = make(databases=make_pool(resolve, known=["t1", "t2"]))
    with pytest.raises(PruneError) as raised:
        process.retention.prune(dry_run=True)
    assert raised.value.report == {"t1": 1}
    assert list(raised.value.failures) == ["t2"]


def test_an_error_about_many_databases_stays_short():
    error = PruneError({}, {f"t{number}": OSError("gone") for number in range(100)})
    assert str(error).endswith("'t2': gone, ...)")


def test_a_failure_does_not_stop_the_schedule(make, tmp_path):
    clock = Clock()
    process = make(clock, adapter=Unreachable(tmp_path / "a.db"))
    process.retention.catch_up()
    for day in range(1, 4):
        clock.now = START.replace(hour=0, minute=0) + timedelta(days=day)
        process.retention.run_pending()
        assert process.counters["retention_failures"] == day


def test_a_list_of_tenants_that_cannot_be_read_is_a_failure(make, make_pool, tmp_path):
    (tmp_path / "ns" / "tenants.ndjson").mkdir(parents=True)
    process = make(databases=make_pool())
    with pytest.raises(PruneError, match="Is a directory"):
        process.retention.prune()
    assert process.counters["retention_failures"] == 1


def test_a_folder_that_cannot_be_written_does_not_stop_the_schedule(make, tmp_path):
    clock = Clock()
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns" / "retention.json").mkdir()
    process = make(clock)
    process.retention.catch_up()
    clock.now = START + timedelta(days=1)
    process.retention.run_pending()
    assert process.counters["retention_failures"] == 2
    (tmp_path / "ns" / "retention.json").rmdir()
    fill(tmp_path / "a.db", "t1", 100)
    clock.now = START + timedelta(days=2)
    process.retention.run_pending()
    assert process.counters["pruned"] == 1


# ── when ──


def runs(process, clock, until, most=3):
    """Return the times at which it prunes, with the clock going on to each next time."""
    times = []
    process.retention.catch_up()
    while len(times) < most and clock.now <= until:
        before = len(process.heard)
        process.retention.wake_up()
        times += [clock.now] * (len(process.heard) > before)
        clock.go_on(seconds=min(6 * 86_400, process.retention._job.seconds_left()))
    assert {name for name, _ in process.heard} == {"pruned"}
    return times


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 0 * * *", ["2026-04-01 00:00", "2026-04-02 00:00", "2026-04-03 00:00"]),
        ("30 2 31 * *", ["2026-05-31 02:30", "2026-07-31 02:30", "2026-08-31 02:30"]),
        ("0 4 29 2 *", ["2028-02-29 04:00"]),
        ("0 0 L * *", ["2026-04-30 00:00", "2026-05-31 00:00", "2026-06-30 00:00"]),
        ("0 12 1 1 *", ["2027-01-01 12:00", "2028-01-01 12:00"]),
        ("*/20 15 * * MON", ["2026-04-06 15:00", "2026-04-06 15:20", "2026-04-06 15:40"]),
        ("0 0 13 * 5", ["2026-04-03 00:00", "2026-04-10 00:00", "2026-04-13 00:00"]),
    ],
)
def test_cron_times_are_those_of_utc(make, cron, expected, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        clock = Clock()
        process = make(clock, cron=cron)
        found = runs(process, clock, START + timedelta(days=1100), len(expected))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [f"{moment:%Y-%m-%d %H:%M}" for moment in found] == expected


def test_the_change_to_summer_time_moves_no_run(make):
    clock = Clock(datetime(2026, 3, 28, 12, tzinfo=UTC))  # Europe changes on the 29th
    found = runs(make(clock, cron="30 1 * * *"), clock, clock.now + timedelta(days=3))
    assert [f"{moment:%d %H:%M}" for moment in found] == ["29 01:30", "30 01:30", "31 01:30"]


def test_nothing_runs_before_its_time(make, tmp_path):
    fill(tmp_path / "a.db", "t1", 100)
    clock = Clock()
    process = make(clock)
    process.retention.catch_up()
    clock.now = datetime(2026, 3, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    process.retention.run_pending()
    assert process.counters["pruned"] == 0
    clock.now = datetime(2026, 4, 1, tzinfo=UTC)
    process.retention.run_pending()
    assert process.counters["pruned"] == 1
    assert process.heard == [("pruned", {"namespace": "ns", "rows": 1, "databases": 1})]


def test_times_missed_while_no_process_ran_are_made_up_for_once(make, tmp_path):
    clock = Clock()
    make(clock).retention.catch_up()  # the first start of all: nothing is missed
    fill(tmp_path / "a.db", "t1", 100)
    clock.now = START + timedelta(days=5)
    late = make(clock)
    late.retention.catch_up()
    assert late.counters["pruned"] == 1
    fill(tmp_path / "a.db", "t1", 100)
    again = make(clock)
    again.retention.catch_up()
    assert again.counters["pruned"] == 0


@pytest.mark.parametrize("stamp", ["", "{", '{"v": 1, "done_up_to": "2999-01-01T00:00:00Z"}'])
def test_a_stamp_that_is_torn_or_of_the_future_is_none(make, tmp_path, stamp):
    fill(tmp_path / "a.db", "t1", 100)
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns" / "retention.json").write_text(stamp)
    clock = Clock()
    process = make(clock)
    process.retention.catch_up()
    assert process.counters["pruned"] == 0
    clock.now = START + timedelta(days=1)
    process.retention.run_pending()
    assert process.counters["pruned"] == 1


@pytest.mark.parametrize("cron", ["", "* * * *", "0 0 0 * * *", "61 * * * *", "0 0 30 2 *", 5])
def test_a_bad_cron_expression_fails_at_set_up(cron, tmp_path):
    with pytest.raises(ConfigurationError, match=r"retention\.cron"):
        AuditTrail(
            namespace="ns",
            adapter=f"sqlite:///{tmp_path}/a.db",
            retention={"days": 1, "cron": cron},
        )


def test_the_wall_clock_is_in_utc():
    assert abs(utc_clock().timestamp() - time.time()) < 5
    assert utc_clock().tzinfo is UTC


# ── a clock that is wrong ──


def start(make, tmp_path, clock, *, ages=(1, 100), **options):
    """Return a process that has begun, with events that are so many days old."""
    process = make(clock, **options)
    process.retention.catch_up()
    fill(tmp_path / "a.db", "t1", *ages)
    return process


def store(path, tenant, clock):
    """Store an event by *clock*, as the application goes on doing."""
    adapter = SQLiteAdapter(path)
    adapter.init()
    adapter.bulk_insert(tenant, events(tenant, 0, now=clock.now))
    adapter.close()


def refusal(process):
    """Return the reason of the one report, which must be of retention that has not run."""
    ((name, details),) = process.heard
    assert (name, process.counters["pruned"]) == ("retention_failed", 0)
    return details["reason"]


@pytest.mark.parametrize("days", [30, 365, 3650])
def test_a_clock_that_jumps_ahead_removes_nothing_and_is_reported(make, tmp_path, days):
    clock = Clock()
    process = start(make, tmp_path, clock)
    clock.go_on(seconds=60)
    clock.now += timedelta(days=days)
    store(tmp_path / "a.db", "t1", clock)
    process.wake_up()
    assert f"{days}.0 days after the last time that is certain (2026-03-31 15:00)" in refusal(
        process
    )
    assert "trail.prune(trust_clock=True), or wait" in refusal(process)
    with pytest.raises(PruneError, match="nothing is pruned") as raised:
        process.retention.prune()
    assert isinstance(raised.value.failures[None], ClockError)
    assert ages(tmp_path / "a.db", "t1") == [100, 1, 0]


def test_once_the_clock_is_right_again_what_is_old_goes(make, tmp_path):
    clock = Clock()
    process = start(make, tmp_path, clock)
    clock.now += timedelta(days=365)
    process.wake_up()
    assert process.counters["retention_failures"] == 1
    clock.now -= timedelta(days=365)
    process.wake_up()
    clock.go_on(hours=9)
    process.wake_up()
    assert process.counters["pruned"] == 1
    assert ages(tmp_path / "a.db", "t1") == [1]


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_process_that_starts_with_a_wrong_clock_removes_nothing(make, tmp_path, by_hand):
    clock = Clock()
    start(make, tmp_path, clock)
    clock.now += timedelta(days=365)
    process = make(clock)
    if by_hand:
        with pytest.raises(PruneError):
            process.retention.prune()
    else:
        process.retention.catch_up()
    assert "365.0 days after" in refusal(process)
    assert ages(tmp_path / "a.db", "t1") == [100, 1]


def test_a_service_that_was_off_for_a_year_prunes_after_a_week(make, tmp_path):
    clock = Clock()
    start(make, tmp_path, clock)
    clock.now += timedelta(days=365)
    for _ in range(7):  # started anew each day
        process = make(clock)
        process.retention.catch_up()
        assert "believed at 2027-04-07 15:00" in refusal(process)
        clock.now += timedelta(days=1)
    process = make(clock)
    process.retention.catch_up()
    assert process.counters["pruned"] == 2


def test_a_job_that_runs_once_a_month_prunes_with_every_other_run(make, tmp_path):
    clock = Clock()
    start(make, tmp_path, clock)
    found = []
    for _ in range(4):
        clock.now += timedelta(days=30)
        process = make(clock)
        process.retention.catch_up()
        found.append(process.counters["retention_failures"])
    assert found == [1, 0, 1, 0]


def test_who_is_sure_of_the_clock_prunes_by_hand_and_the_schedule_follows(make, tmp_path):
    clock = Clock()
    start(make, tmp_path, clock)
    clock.now += timedelta(days=365)
    process = make(clock)
    assert process.retention.prune(trust_clock=True) == {None: 2}
    fill(tmp_path / "a.db", "t1", 100)
    clock.go_on(days=1)
    process.wake_up()
    assert process.counters["pruned"] == 3
    assert process.counters["retention_failures"] == 0


def test_events_that_another_machine_has_stored_speak_for_the_clock(make, tmp_path):
    clock = Clock()
    start(make, tmp_path, clock)
    clock.now += timedelta(days=365)
    store(tmp_path / "a.db", "t1", Clock(clock.now - timedelta(hours=2)))
    process = make(clock)
    process.retention.catch_up()
    assert process.counters["pruned"] == 2
    assert process.counters["retention_failures"] == 0


def test_events_by_the_wrong_clock_itself_do_not_speak_for_it(make, tmp_path):
    clock = Clock()
    process = start(make, tmp_path, clock)
    clock.go_on(hours=8)
    process.wake_up()
    clock.now += timedelta(days=365)
    for _ in range(40):
        store(tmp_path / "a.db", "t1", clock)
        process.wake_up()
        clock.go_on(hours=1)
    assert process.counters["pruned"] == 0
    assert process.counters["retention_failures"] == 3


def test_a_clock_that_jumps_twice_has_not_gone_on_for_a_week(make, tmp_path):
    clock = Clock()
    process = start(make, tmp_path, clock)
    for _ in range(3):
        clock.now += timedelta(days=365)
        process.wake_up()
    assert process.counters["retention_failures"] == 3
    assert ages(tmp_path / "a.db", "t1") == [100, 1]


def test_the_clock_is_watched_from_the_start_of_the_process_on(make, tmp_path):
    clock = Clock()
    process = make(clock)
    fill(tmp_path / "a.db", "t1", 1)
    clock.now += timedelta(days=3650)
    with pytest.raises(PruneError):
        process.retention.prune()
    assert "3650.0 days after" in refusal(process)


def test_a_clock_that_goes_back_stops_retention_no_longer_than_it_is_wrong(make, tmp_path):
    clock = Clock()
    process = start(make, tmp_path, clock)
    clock.go_on(hours=9)
    clock.now -= timedelta(days=365)
    process.wake_up()
    clock.go_on(days=1)
    process.wake_up()
    assert "363.6 days before" in process.heard[-1][1]["reason"]
    clock.now += timedelta(days=365)
    process.wake_up()
    assert process.counters["pruned"] == 1
    assert ages(tmp_path / "a.db", "t1") == [1]


def test_no_event_goes_before_half_of_its_days_is_over(make, tmp_path):
    clock = Clock()
    process = start(make, tmp_path, clock, ages=(0,), tenants={"t1": 2})
    clock.now += timedelta(days=1, hours=1)
    process.wake_up()
    assert "1.0 days after" in refusal(process)


def test_each_tenants_database_is_spared_by_a_wrong_clock(make, make_pool, tmp_path):
    clock = Clock()
    process = make(clock, databases=make_pool(known=["t1", "t2"]))
    process.retention.catch_up()
    for tenant in ("t1", "t2"):
        fill(tmp_path / f"{tenant}.db", tenant, 1)
    clock.now += timedelta(days=365)
    store(tmp_path / "t2.db", "t2", clock)
    process.wake_up()
    assert "nothing is pruned" in refusal(process)
    assert [ages(tmp_path / f"{tenant}.db", tenant) for tenant in ("t1", "t2")] == [[1], [1, 0]]
    store(tmp_path / "t2.db", "t2", Clock(clock.now - timedelta(hours=2)))
    clock.go_on(days=1)
    process.wake_up()
    assert process.counters["pruned"] == 2, "t2's event speaks for the clock of the namespace"


def test_an_adapter_of_ones_own_needs_nothing_more_to_be_spared(make):
    adapter = MemoryAdapter()
    clock = Clock()
    process = make(clock, adapter=adapter)
    process.retention.catch_up()
    adapter.bulk_insert("t1", events("t1", 1))
    clock.now += timedelta(days=365)
    process.wake_up()
    assert "nothing is pruned" in refusal(process)
    assert len(adapter.query("t1", Filters(), Pagination(limit=10))) == 1


# ── a database that hangs ──


def hanging(tmp_path, release, tenant="t2"):
    class Hanging(SQLiteAdapter):
        def prune(self, *args, **options):
            release.wait(30)
            return super().prune(*args, **options)

    return lambda name: (Hanging if name == tenant else SQLiteAdapter)(tmp_path / f"{name}.db")


def test_a_database_that_hangs_is_reported_and_the_others_are_pruned(make, make_pool, tmp_path):
    release = threading.Event()
    for tenant in ("t1", "t2", "t3"):
        fill(tmp_path / f"{tenant}.db", tenant, 100)
    clock = Clock()
    pool = make_pool(hanging(tmp_path, release), known=["t1", "t2", "t3"])
    process = make(clock, databases=pool, timeout=0.2)
    process.retention.catch_up()
    clock.go_on(days=1)
    process.wake_up()
    try:
        assert process.counters["pruned"] == 2
        ((_, failure), _) = process.heard
        assert failure["tenant_id"] == "t2"
        assert "no answer within retention.timeout=0.2 s" in failure["reason"]
        with (tmp_path / "ns" / "retention.json").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free for other processes
    finally:
        release.set()
    assert wait_until(lambda: process.counters["pruned"] == 3), "what comes late counts, too"
    assert wait_until(lambda: "logbun-prune" not in {t.name for t in threading.enumerate()})


# ── several processes ──


def test_of_two_processes_one_does_the_run(make, tmp_path):
    clock = Clock()
    one, two = make(clock), make(clock)
    one.retention.catch_up()
    two.retention.catch_up()
    fill(tmp_path / "a.db", "t1", 100)
    clock.now = START + timedelta(days=1)
    one.retention.run_pending()
    fill(tmp_path / "a.db", "t1", 100)
    two.retention.run_pending()
    assert (one.counters["pruned"], two.counters["pruned"]) == (1, 0)
    clock.now += timedelta(days=1)
    two.retention.run_pending()
    one.retention.run_pending()
    assert (one.counters["pruned"], two.counters["pruned"]) == (1, 1)


def _hold(path, held, release):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        held.set()
        release.wait(30)


def test_a_run_that_dies_in_another_process_is_taken_over(make, tmp_path):
    fill(tmp_path / "a.db", "t1", 100)
    (tmp_path / "ns").mkdir()
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(
        target=_hold, args=(tmp_path / "ns" / "retention.json", held, release), daemon=True
    )
    other.start()
    assert held.wait(30)
    clock = Clock()
    process = make(clock)
    process.retention.catch_up()
    clock.now = datetime(2026, 4, 1, tzinfo=UTC)
    process.retention.run_pending()
    assert process.counters["pruned"] == 0
    other.kill()
    other.join()
    clock.now += timedelta(seconds=30)
    process.retention.run_pending()
    assert process.counters["pruned"] == 0, "it looks again after a minute"
    clock.now += timedelta(seconds=30)
    process.retention.run_pending()
    assert process.counters["pruned"] == 1
    assert process.counters["retention_failures"] == 0


@in_a_fork
def test_a_child_forked_during_a_run_holds_nothing_of_it(make, tmp_path):
    clock = Clock()
    forked = []

    class Forking(SQLiteAdapter):
        def prune(self, *_, **__):
            ready, go = os.pipe(), os.pipe()
            child = os.fork()
            if child == 0:
                process.retention.abandon()
                process.retention.abandon()
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                os._exit(0)
            os.read(ready[0], 1)
            forked.append((child, go[1]))
            return {}

    process = make(clock, adapter=Forking(tmp_path / "a.db"))
    process.retention.catch_up()
    clock.now = START + timedelta(days=1)
    process.retention.run_pending()
    child, go = forked[0]
    try:
        with (tmp_path / "ns" / "retention.json").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.write(go, b"x")
        os.waitpid(child, 0)


# ── in a trail ──


@pytest.fixture
def make_trail(tmp_path):
    trails = []

    def build(**options):
        options.setdefault("adapter", f"sqlite:///{tmp_path}/a.db")
        trail = AuditTrail(namespace="kept", data_dir=tmp_path / "data", **options)
        trails.append(trail)
        return trail

    yield build
    for trail in trails:
        trail.shutdown(10)


def old(tmp_path, tenant="t1"):
    adapter = SQLiteAdapter(tmp_path / "a.db")
    adapter.init()
    adapter.bulk_insert(tenant, events(tenant, 200, now=datetime.now(UTC)))
    adapter.close()


def test_a_trail_prunes_by_hand(make_trail, tmp_path):
    old(tmp_path)
    trail = make_trail(retention={"days": 90})
    assert trail.prune(dry_run=True) == {None: 1}
    assert asyncio.run(trail.aprune()) == {None: 1}
    assert trail.prune() == {None: 0}
    assert trail.stats()["pruned"] == 1


@pytest.mark.parametrize("tenant", ["a" * 3000, "ä" * 1500, "a\0b", "a\ud800", 17])
def test_days_for_a_tenant_hold_whatever_its_events_make_of_its_id(make_trail, tmp_path, tenant):
    trail = make_trail(retention={"days": 1, "tenants": {tenant: 36_500}})
    logger = logging.Logger("audit")  # noqa: LOG001 - one of its own
    logger.addHandler(trail.handler)
    logger.info("a.b", extra={"tenant_id": tenant})
    assert trail.flush(10)
    stored = trail.query(tenant_id=str(tenant)).logs[0].tenant_id
    old(tmp_path, stored)
    assert trail.prune() == {stored: 0, None: 0}
    assert len(trail.query(tenant_id=str(tenant)).logs) == 2


def test_no_tenant_at_all_can_have_days_of_its_own(make_trail):
    with pytest.raises(ConfigurationError, match=r"retention\.tenants\[''\]"):
        make_trail(retention={"tenants": {"": 7}})


def test_maintenance_by_hand_prunes_and_survives_failures(make_trail, tmp_path):
    trail = make_trail(adapter=Unreachable(tmp_path / "a.db"), retention={"days": 90})
    assert trail.run_maintenance()
    assert trail.stats()["retention_failures"] == 1


def threads_of_retention():
    return [thread for thread in threading.enumerate() if thread.name == "logbun-retention"]


def test_the_thread_lives_as_long_as_the_trail_and_makes_up_for_what_was_missed(
    make_trail, tmp_path
):
    old(tmp_path)
    folder = tmp_path / "data" / "kept"
    folder.mkdir(parents=True)
    stamp = {"v": 1, "done_up_to": "2020-01-01T00:00:00Z"}
    (folder / "retention.json").write_text(json.dumps(stamp))
    pruned = threading.Event()
    trail = make_trail(
        retention={"days": 90}, on_event=lambda name, _: name == "pruned" and pruned.set()
    )
    assert threads_of_retention() == []
    trail.ready()
    assert pruned.wait(10)
    assert len(threads_of_retention()) == 1
    assert trail.shutdown(10)
    assert threads_of_retention() == []
    assert trail.stats()["pruned"] == 1
    done = datetime.fromisoformat(json.loads((folder / "retention.json").read_text())["done_up_to"])
    assert timedelta(0) <= datetime.now(UTC) - done < timedelta(days=1, minutes=1)


def test_a_shutdown_does_not_wait_for_a_database_that_takes_its_time(make_trail, tmp_path):
    started, release = threading.Event(), threading.Event()

    class Slow(SQLiteAdapter):
        def prune(self, *_, **__):
            started.set()
            release.wait(30)
            raise AdapterUnavailableError("closed meanwhile")

    stamp = tmp_path / "data" / "kept" / "retention.json"
    stamp.parent.mkdir(parents=True)
    stamp.write_text(json.dumps({"v": 1, "done_up_to": "2020-01-01T00:00:00Z"}))
    trail = make_trail(adapter=Slow(tmp_path / "a.db"), retention={"days": 90})
    trail.ready()
    assert started.wait(10)
    (thread,) = threads_of_retention()
    begun = time.monotonic()
    assert trail.shutdown(10)
    assert time.monotonic() - begun < 6
    release.set()
    thread.join(10)
    after = json.loads(stamp.read_text())
    assert after["done_up_to"] == "2020-01-01T00:00:00Z", "the next start makes up for it"
    assert trail.stats()["retention_failures"] == 0


def test_between_two_databases_a_stop_is_heeded(make, make_pool):
    process = make(databases=make_pool(known=["t1", "t2"]))
    process.retention.stop(0)
    assert process.retention.prune() == {}


@in_a_fork
def test_a_forked_child_starts_its_own_thread_with_its_first_event(make_trail, tmp_path):
    trail = make_trail(retention={"days": 90})
    logger = logging.Logger("audit")  # noqa: LOG001 - one of its own
    logger.addHandler(trail.handler)
    logger.info("a.b")
    assert trail.flush(10)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            idle = not threads_of_retention()
            logger.info("a.b")
            status = 0 if idle and len(threads_of_retention()) == 1 and trail.shutdown(10) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
