"""Threads end when their work does; what dies or cannot be started is started again and told of."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from logbun_logging._engine.reporting import Reporter
from logbun_logging._engine.threads import Threads
from logbun_logging._process.counters import Counters
from logbun_logging._process.worker import WorkerThread
from logbun_logging.logger import AuditLogger
from tests.engine.test_reporting import Clock
from tests.fakes import SharedMemoryAdapter, wait_until


class Parts:
    """The threads of a pipeline, without the pipeline."""

    def __init__(self):
        self.clock = Clock()
        self.counters = Counters()
        self._heard = []
        self.reporter = Reporter("ns", lambda *what: self._heard.append(what), self.counters)
        self.threads = Threads(self.counters, self.reporter, self.clock)

    def heard(self):
        assert self.reporter.drain(20)
        return [name for name, _ in self._heard]


@pytest.fixture
def parts():
    found = Parts()
    yield found
    found.threads.close()
    found.reporter.close(20)


@pytest.fixture
def refuse(monkeypatch):
    """Let no thread start whose name begins with one of the names in the list returned."""
    names = []
    start = threading.Thread.start

    def start_unless_refused(thread):
        if thread.name.startswith(tuple(names)):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless_refused)
    return names


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, asyncio.CancelledError, MemoryError])
def test_work_that_raises_is_begun_again_counted_and_reported(parts, error):
    ended = threading.Event()
    errors = [error("one"), error("two")]

    def work():
        if errors:
            raise errors.pop()
        ended.set()

    worker = parts.threads.start("logbun-test", work)
    assert ended.wait(20)
    worker.join(20)
    assert worker.done
    assert parts.counters["threads_died"] == 2
    assert parts.heard() == ["thread_died"] * 2


def test_a_thread_that_has_ended_untimely_is_started_again(parts):
    runs = threading.Semaphore(0)
    release = threading.Event()

    def work():
        runs.release()
        release.wait(30)

    worker = parts.threads.start("logbun-test", work)
    assert runs.acquire(timeout=20)
    worker._thread = threading.Thread()  # what is left of one that was killed
    parts.threads.maintain()
    assert runs.acquire(timeout=20)
    assert parts.counters["threads_died"] == 1
    assert parts.heard() == ["thread_died"]
    release.set()
    worker.join(20)
    assert wait_until(lambda: worker.done)
    parts.threads.maintain()
    assert not runs.acquire(blocking=False)


def test_what_cannot_be_started_is_tried_again_each_second_and_reported_once(parts, refuse):
    refuse.append("logbun-test")
    ran = threading.Event()
    parts.threads.start("logbun-test", ran.set)
    assert parts.threads.missing
    parts.clock.now = 1.0
    parts.threads.maintain()
    refuse.clear()
    parts.clock.now = 1.9
    parts.threads.maintain()
    assert parts.threads.missing
    parts.clock.now = 2.0
    parts.threads.maintain()
    assert not parts.threads.missing
    assert ran.wait(20)
    assert parts.heard() == ["start_failed"]


def test_a_thread_may_ask_to_be_joined_by_itself():
    joined = threading.Event()

    def work():
        worker.join()
        joined.set()

    worker = WorkerThread("logbun-test", work, lambda *_: None)
    worker.start()
    assert joined.wait(20)


# ── in a trail ──


@pytest.mark.parametrize("mode", ["volatile", "durable"])
@pytest.mark.parametrize(
    "refused", ["logbun-", "logbun-listener", "logbun-flush", "logbun-maintenance", "logbun-wal"]
)
def test_a_trail_without_threads_delivers_by_itself_and_gets_them_later(
    make_trail, make_logger, refuse, mode, refused
):
    adapter = SharedMemoryAdapter()
    heard = []
    trail = make_trail(adapter=adapter, mode=mode, on_event=lambda name, _: heard.append(name))
    audit = AuditLogger(make_logger(trail.handler))
    refuse.append(refused)
    for number in range(20):
        audit.fire("a", entity_id=str(number))
    assert trail.flush(20) or refused == "logbun-maintenance"
    assert wait_until(lambda: len(adapter.events) == 20)
    refuse.clear()
    assert wait_until(lambda: audit.fire("a") or not trail.pipeline.threads.missing)
    assert trail.flush(20)
    assert trail.handler.listener.running
    if refused != "logbun-wal" or mode == "durable":
        assert wait_until(lambda: "start_failed" in heard)
    assert trail.stats()["lost"] == 0
    assert trail.stats()["accepted"] == len(adapter.events)


def test_what_was_deferred_is_delivered_where_there_are_no_threads(make_trail, make_logger, refuse):
    adapter = SharedMemoryAdapter()
    trail = make_trail(adapter=adapter, mode="durable", limits={"max_total_queued": 10})
    audit = AuditLogger(make_logger(trail.handler))
    refuse.append("logbun-")
    for number in range(100):
        audit.fire("a", entity_id=str(number))
    assert trail.stats()["wal"]["deferred"] == 90
    assert trail.shutdown(20)
    assert len(adapter.events) == 100


def test_nothing_waits_for_memory_that_nobody_makes(make_trail, make_logger, refuse):
    trail = make_trail(adapter=SharedMemoryAdapter(), limits={"max_total_queued": 10})
    audit = AuditLogger(make_logger(trail.handler))
    waits = []
    trail.pipeline.buffers.admit_later = lambda entry, timeout: waits.append(timeout) or "full"
    refuse.append("logbun-")
    for _ in range(12):
        audit.fire("a")
    assert waits == [0.0, 0.0]


def test_an_error_that_is_no_exception_ends_no_thread_of_a_trail(make_trail, make_logger):
    class Cancelled(SharedMemoryAdapter):
        def bulk_insert(self, tenant_id, events):
            super().bulk_insert(tenant_id, events)
            if len(self.batches) == 1:
                raise asyncio.CancelledError

    class Exiting(logging.Handler):
        def handle(self, record):
            raise SystemExit(1)

    def on_event(name, details):
        raise SystemExit(name)

    adapter = Cancelled()
    trail = make_trail(
        adapter=adapter, mode="durable", on_event=on_event, retry={"base_delay": 0.01}
    )
    trail.handler.listener.handlers += (Exiting(),)
    audit = AuditLogger(make_logger(trail.handler))
    audit.fire("a")
    assert trail.flush(20)
    workers = [*trail.pipeline.threads._workers]
    names = {worker.name for worker in workers if worker.alive}
    assert names == {"logbun-listener", "logbun-flush", "logbun-wal", "logbun-maintenance"}
    audit.fire("b")
    assert trail.flush(20)
    assert {event.action for event in adapter.events.values()} == {"a", "b"}
    assert all(worker.alive for worker in workers)
    assert trail.stats()["threads_died"] == 0
