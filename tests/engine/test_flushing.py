"""The flush workers: every batch has an owner, and no tenant waits for another one's database."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from logbun_logging import AdapterUnavailableError
from logbun_logging._process.counters import COUNTERS
from tests.fakes import MemoryAdapter, SharedMemoryAdapter, wait_until

FATES = ("dead_lettered", "spilled", "deferred", "filtered", "dropped", "lost", "queued")


def balanced(stats):
    """Tell whether every event that came has become something, and one thing only."""
    live = stats["inserted"] - stats["redelivered"]
    return stats["accepted"] + stats["recovered"] == live + sum(stats[name] for name in FATES)


def log_each(log, tenants, action="a.b"):
    for tenant in tenants:
        log.info(action, extra={"tenant_id": tenant})


@pytest.fixture
def per_tenant(make_trail, make_logger):
    """Make a trail with a database for each tenant; those of some hang until they are released."""
    release = threading.Event()
    adapters = {}

    class Hangs(MemoryAdapter):
        def bulk_insert(self, tenant_id, events):
            release.wait(60)
            return super().bulk_insert(tenant_id, events)

    def make(hangs, **options):
        def resolve(tenant):
            if hangs == "resolver" and tenant.startswith("sick"):
                release.wait(60)
            kind = Hangs if hangs == "insert" and tenant.startswith("sick") else MemoryAdapter
            return adapters.setdefault(tenant, kind())

        trail = make_trail(
            adapter=None,
            mode="durable",
            tenancy={"mode": "database_per_tenant", "resolve_connection": resolve},
            batching={"flush_interval": 0.01},
            retry={"max_retries": 1, "base_delay": 0.01, "first_scan": 3600},
            **options,
        )
        return trail, make_logger(trail.handler), adapters

    yield make
    release.set()


@pytest.mark.parametrize("hangs", ["insert", "resolver"])
def test_sixty_tenants_that_hang_hold_up_no_other(per_tenant, hangs):
    trail, log, adapters = per_tenant(hangs, insert_timeout=30)
    log_each(log, ["well"])
    assert wait_until(lambda: len(adapters["well"].events) == 1 if "well" in adapters else False)
    log_each(log, [f"sick{number}" for number in range(60)])
    for number in range(2, 6):  # long before the first of the others is given up
        log_each(log, ["well"])
        assert wait_until(lambda number=number: len(adapters["well"].events) == number, 10)
    assert trail.shutdown(0.5) is False
    assert trail.stats()["lost"] == 0


def test_threads_that_hang_are_bounded_over_all_databases(per_tenant):
    trail, log, _ = per_tenant("insert", insert_timeout=0.05, pool={"max_active_connections": 40})
    tenants = [f"sick{number}" for number in range(80)]
    before = set(threading.enumerate())
    for _ in range(5):
        log_each(log, tenants)
        trail.flush(1)
    new = set(threading.enumerate()) - before
    assert sum(thread.name == "logbun-insert" for thread in new) <= 48
    assert trail.pipeline.delivery.hanging <= 24


def test_one_row_that_looks_like_an_outage_is_alone_in_the_dlq(make_trail, make_logger):
    class Breaks(SharedMemoryAdapter):
        def bulk_insert_many(self, batches):
            if any(event.action == "bad" for _, events in batches for event in events):
                raise AdapterUnavailableError("connection reset by peer")
            return super().bulk_insert_many(batches)

    adapter = Breaks()
    trail = make_trail(
        adapter=adapter,
        batching={"flush_interval": 0.01},
        retry={"max_retries": 1, "base_delay": 0.2, "first_scan": 3600},
    )
    log = make_logger(trail.handler)
    assert trail.ready()
    log_each(log, ["t"] * 50)
    log_each(log, ["t"], action="bad")
    log_each(log, ["t"] * 49)
    assert wait_until(lambda: trail.stats()["retried"] > 0)
    log_each(log, ["other"])
    assert wait_until(lambda: len(adapter.events) == 100)
    assert trail.flush(10)
    (file,) = trail.dlq.list()
    assert file.envelope.count == 1


def test_a_database_that_takes_few_rows_in_its_time_gets_few_at_a_time(make_trail, make_logger):
    class Slow(SharedMemoryAdapter):
        def bulk_insert_many(self, batches):
            rows = sum(len(events) for _, events in batches)
            self.sizes.append(rows)
            if rows > 300:
                raise TimeoutError("504")
            return super().bulk_insert_many(batches)

    adapter = Slow()
    adapter.sizes = []
    trail = make_trail(
        adapter=adapter,
        batching={"flush_interval": 0.01, "max_size": 100, "max_queue_size": 10_000},
        retry={"max_retries": 20, "base_delay": 0.01, "first_scan": 3600},
    )
    log = make_logger(trail.handler)
    log_each(log, ["t"] * 1000)
    assert wait_until(lambda: len(adapter.events) == 1000, 30), adapter.sizes
    assert trail.flush(10)
    assert trail.dlq.list() == []


@pytest.mark.parametrize("error", [MemoryError, OSError, RuntimeError])
@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_what_cannot_be_spilled_stays_in_memory(make_trail, make_logger, monkeypatch, mode, error):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    trail = make_trail(
        adapter=adapter,
        mode=mode,
        batching={"flush_interval": 0.01, "max_queue_size": 10, "max_size": 10},
        retry={"max_retries": 100, "base_delay": 0.2, "first_scan": 3600},
    )
    log = make_logger(trail.handler)
    put, failed = trail.pipeline.dlq.put_together, []

    def fail(*arguments, **options):
        if len(failed) < 3:
            failed.append(1)
            raise error("no")
        return put(*arguments, **options)

    monkeypatch.setattr(trail.pipeline.dlq, "put_together", fail)
    tenants = [f"t{number % 3}" for number in range(150)]
    log_each(log, tenants)
    assert wait_until(lambda: trail.stats()["retried"] > 2)
    log_each(log, tenants)
    assert wait_until(lambda: trail.stats()["spilled"] > 0)
    assert failed
    adapter.down = False
    assert wait_until(lambda: (trail.run_maintenance(), len(adapter.events))[1] == 300, 30)
    assert balanced(trail.stats())
    assert trail.stats()["lost"] == 0


def test_what_cannot_be_dead_lettered_is_tried_again(make_trail, make_logger, monkeypatch):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    trail = make_trail(
        adapter=adapter,
        mode="durable",
        batching={"flush_interval": 0.01},
        retry={"max_retries": 0, "first_scan": 3600},
    )
    log = make_logger(trail.handler)
    failed = threading.Event()

    def fail(*_, **__):
        failed.set()
        raise MemoryError

    monkeypatch.setattr(trail.pipeline.dlq, "put", fail)
    monkeypatch.setattr(trail.pipeline.wal, "defer", fail)
    log_each(log, ["t"] * 5)
    assert failed.wait(10)
    adapter.down = False
    assert wait_until(lambda: len(adapter.events) == 5)
    assert trail.flush(10)


def test_the_books_are_right_at_every_moment_and_no_counter_falls(make_trail, make_logger):
    adapter = SharedMemoryAdapter()
    trail = make_trail(
        adapter=adapter,
        mode="durable",
        batching={"flush_interval": 0.01, "max_queue_size": 50, "max_size": 20},
        limits={"max_total_queued": 300},
        retry={"max_retries": 1, "base_delay": 0.01, "first_scan": 0.1, "scan_interval": 0.1},
    )
    log = make_logger(trail.handler)
    assert trail.ready()
    done = threading.Event()
    wrong = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns in the midst of everything

    def watch():
        before = trail.pipeline.buffers.snapshot()
        while not done.is_set():
            stats = trail.pipeline.buffers.snapshot()
            if not balanced(stats):
                wrong.append(stats)
            wrong.extend(name for name in COUNTERS if stats[name] < before[name])
            before = stats

    def outages():
        while not done.wait(0.1):
            adapter.down = not adapter.down

    threads = [threading.Thread(target=work) for work in (watch, watch, outages)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        log_each(log, ["loud"] * 20 + ["a", "b", "c"])
    done.set()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert wrong == []
    adapter.down = False
    stats = trail.stats()
    assert stats["accepted"] > 300
    assert wait_until(
        lambda: (trail.run_maintenance(), len(adapter.events))[1] == stats["accepted"], 30
    )
    assert balanced(trail.stats())


def test_what_has_no_tenant_waits_in_memory_while_nothing_can_be_written(
    make_trail, make_logger, tmp_path
):
    trail = make_trail(
        adapter=MemoryAdapter(),
        mode="durable",
        require_tenant_id=True,
        batching={"flush_interval": 0.01},
    )
    folder = tmp_path / "data" / "test"
    folder.mkdir(parents=True)
    in_the_way = [folder / "wal", folder / "dlq"]
    for path in in_the_way:
        path.touch()
    make_logger(trail.handler).info("course.created")
    assert wait_until(lambda: trail.stats()["refused"], 20)
    assert not trail.flush(0.01)
    stats = trail.stats()
    assert (stats["queued"], stats["lost"]) == (1, 0)

    for path in in_the_way:
        path.unlink()
    assert wait_until(lambda: trail.stats()["dead_lettered"], 20)
    stats = trail.stats()
    assert stats["refused"] == stats["dlq"]["pending_events"] == 1
    assert balanced(stats)
    assert wait_until(lambda: trail.stats()["wal"]["oldest"] is None, 20)
