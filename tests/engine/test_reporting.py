"""What goes wrong is told, to whom it concerns, and not too often."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from logbun_logging._engine.queue import RecordQueue
from logbun_logging._engine.report_kinds import REPORTS
from logbun_logging._engine.reporting import LOGGER_NAME, Reporter
from logbun_logging._process.counters import Counters
from logbun_logging._storage.wal import WalRemovedError
from logbun_logging._tenancy.breaker import CircuitBreaker
from logbun_logging.logger import AuditLogger
from logbun_logging.query import ALL_TENANTS
from tests.fakes import SharedMemoryAdapter, wait_until


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def make_reporter():
    """Make reporters; their threads end with the test."""
    made = []

    def make(callback=None, counters=None, clock=None):
        reporter = Reporter("ns", callback, counters or Counters(), clock or Clock())
        made.append(reporter)
        return reporter

    yield make
    for reporter in made:
        reporter.close(20)


def messages(caplog):
    """Return what was logged."""
    return [record.getMessage() for record in caplog.records]


def test_one_kind_of_message_is_logged_once_in_ten_seconds(make_reporter, caplog):
    clock = Clock()
    heard = []
    reporter = make_reporter(lambda name, details: heard.append(details), clock=clock)
    for number in range(5):
        reporter.report("cut", events=number)
    assert reporter.drain(20)
    clock.now = 11
    reporter.report("cut", events=5)
    assert reporter.drain(20)
    advice = REPORTS["cut"].step
    assert messages(caplog) == [
        f"ns: Cut values of 0 events to the limits. {advice} [cut]",
        f"ns: Cut values of 5 events to the limits. {advice} [cut] (4 more like this)",
    ]
    assert len(heard) == 6
    assert heard[0] == {"namespace": "ns", "events": 0}


def test_one_tenant_s_noise_hides_no_other_tenant_s(make_reporter, caplog):
    reporter = make_reporter()
    for _ in range(3):
        for tenant in ("a", "b"):
            reporter.report("spilled", tenant_id=tenant, events=1, file="f")
    assert reporter.drain(20)
    assert ["tenant_id=a" in text for text in messages(caplog)] == [True, False]


def test_a_flood_of_tenants_neither_fills_the_log_nor_grows_a_table(make_reporter, caplog):
    heard = []
    clock = Clock()
    reporter = make_reporter(lambda *what: heard.append(what), clock=clock)
    for number in range(500):
        reporter.report("spilled", tenant_id=f"t{number}", events=1, file="f")
    assert reporter.drain(20)
    assert (len(heard), len(caplog.records)) == (500, 10)
    assert len(reporter._windows["spilled"].tenants) == 10
    clock.now = 10
    reporter.report("spilled", tenant_id="t0", events=1, file="f")
    assert reporter.drain(20)
    assert messages(caplog)[-1].endswith("(490 more like this)")


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, asyncio.CancelledError])
def test_a_callback_that_raises_is_logged_and_called_again(make_reporter, caplog, error):
    heard = []

    def callback(name, details):
        heard.append(name)
        raise error("broken")

    reporter = make_reporter(callback)
    reporter.report("spilled", events=1)
    reporter.report("poisoned", events=1)
    assert reporter.drain(20)
    assert heard == ["spilled", "poisoned"]
    assert f"{error.__name__}: broken" in caplog.text
    assert "(callback). It is called again" in caplog.text  # and where it raised


def test_a_filter_that_raises_ends_no_thread_and_is_written_to_stderr(make_reporter, capsys):
    logger = logging.getLogger(LOGGER_NAME)
    heard = []
    reporter = make_reporter(lambda name, _: heard.append(name))

    def broken(record):
        raise SystemExit("broken")

    logger.addFilter(broken)
    try:
        reporter.report("spilled", events=1)
        reporter.report("poisoned", events=1)
        assert reporter.drain(20)
    finally:
        logger.removeFilter(broken)
    assert heard == ["spilled", "poisoned"]
    assert "spilled could not be logged: SystemExit: broken" in capsys.readouterr().err


def test_a_callback_that_blocks_keeps_nobody_waiting_and_what_does_not_fit_is_told_of(
    make_reporter,
):
    gate, entered, counters, heard = threading.Event(), threading.Event(), Counters(), []

    def callback(name, details):
        entered.set()
        gate.wait(30)
        heard.append((name, details))

    reporter = make_reporter(callback, counters)
    reporter.report("spilled", events=0)
    assert entered.wait(20)
    for number in range(1200):
        reporter.report("spilled", events=number)
    assert counters["reports_dropped"] == 200
    assert not reporter.drain(0.01)
    gate.set()
    assert reporter.drain(20)
    assert len(heard) == 1002
    assert heard[-1] == ("reports_dropped", {"namespace": "ns", "reports": 200})


def test_what_callers_count_is_reported_once(make_reporter):
    counters, heard = Counters(), []
    reporter = make_reporter(
        lambda name, details: heard.append((name, details["events"])), counters
    )
    counters.add("dropped", 3)
    reporter.watch()
    reporter.watch()
    assert reporter.drain(20)
    counters.add("dropped")
    counters.add("lost", 2)
    reporter.watch()
    assert reporter.drain(20)
    counters.add("lost", -2)  # the namespace's next trail delivers them
    reporter.watch()
    assert reporter.drain(20)
    assert heard == [("dropped", 3), ("dropped", 1), ("lost", 2)]


def test_without_reports_there_is_no_thread_and_after_the_end_it_goes(make_reporter):
    before = {*threading.enumerate()}
    reporter = make_reporter()
    reporter.watch()
    assert {*threading.enumerate()} <= before
    reporter.report("spilled", events=1)
    assert reporter.drain(20)
    (thread,) = {*threading.enumerate()} - before
    assert thread.name == "logbun-reporter"
    reporter.close(20)
    thread.join(20)
    assert not thread.is_alive()


def test_where_no_thread_can_be_started_the_last_to_ask_tells(make_reporter, monkeypatch):
    heard = []
    reporter = make_reporter(lambda name, _: heard.append((name, threading.get_ident())))
    monkeypatch.setattr(reporter, "_start", lambda: False)
    reporter.report("spilled", events=1)
    assert heard == []  # others may be waiting for this thread
    reporter.close(20)
    reporter.report("lost", events=1)
    assert heard == [(name, threading.get_ident()) for name in ("spilled", "lost")]


def test_a_report_may_be_made_in_a_signal_handler_that_found_threading_s_lock_held(
    make_reporter,
):
    heard = threading.Event()
    reporter = make_reporter(lambda *_: heard.set())
    with threading._active_limbo_lock:
        reporter.report("spilled", events=1)
    assert heard.wait(20)


def test_a_callback_may_call_whatever_the_trail_offers(make_trail, make_logger):
    done = []
    ended = threading.Event()

    def on_event(name, details):
        if name == "database_recovered":
            done.append(trail.dlq.retry() >= 0)
            done.append(trail.flush(10) in {True, False})
            done.append(trail.run_maintenance() in {True, False})
            done.append(trail.shutdown(10))
            ended.set()

    adapter = SharedMemoryAdapter()
    adapter.down = True
    retry = {"max_retries": 0, "first_scan": 0.01, "scan_interval": 0.05}
    trail = make_trail(adapter=adapter, mode="durable", retry=retry, on_event=on_event)
    audit = AuditLogger(make_logger(trail.handler))

    def failed_thrice():
        audit.fire("a")
        trail.flush(0.1)
        return trail.stats()["circuit_open"]

    assert wait_until(failed_thrice, 30)
    adapter.down = False
    assert ended.wait(60)
    assert done[:3] == [True] * 3
    assert trail.pipeline.finished


def test_who_holds_logging_s_lock_while_an_insert_fails_waits_for_no_report(
    make_trail, make_logger
):
    """As dictConfig does, which closes handlers under it and makes every logger ask again."""

    class Failing(SharedMemoryAdapter):
        def bulk_insert(self, tenant_id, events):
            super().bulk_insert(tenant_id, events)
            return len(self.batches) > 1

        def bulk_insert_many(self, batches):
            return all(self.bulk_insert(*batch) for batch in batches)

    adapter = Failing()
    adapter.gate.clear()
    trail = make_trail(adapter=adapter, retry={"base_delay": 0.01})
    AuditLogger(make_logger(trail.handler)).fire("a")
    assert adapter.called.wait(20) or trail.flush(0.1) or adapter.called.wait(20)
    with logging._lock:
        logging.root.manager._clear_cache()
        adapter.gate.set()
        assert trail.shutdown(20)
        assert trail.stats()["inserted"] == 1
        assert trail.stats()["insert_failures"] == 1
    assert trail.pipeline.reporter.drain(20)


def test_nothing_in_a_report_forges_a_line_of_a_log(make_reporter, caplog):
    forged = "a\nCRITICAL auth root login\x1b[2J\u202e\u2028\x9b"
    reporter = make_reporter()
    reporter.report("insert_failed", tenant_id=forged, events=1, attempt=1, reason=forged)
    reporter.report("a_kind_of_others", file=forged)
    assert reporter.drain(20)
    for text in messages(caplog):
        assert text.isprintable()
        assert r"a\nCRITICAL auth root login\x1b[2J\u202e\u2028\x9b" in text


def test_a_long_reason_is_cut(make_reporter, caplog):
    heard = []
    reporter = make_reporter(lambda name, details: heard.append(details["reason"]))
    reporter.report("redelivery_failed", reason="x" * 1_000_000)
    assert reporter.drain(20)
    assert len(messages(caplog)[0]) < 500
    assert heard == ["x" * 2000]


def test_a_callback_hears_no_secret_of_a_drivers_error(make_reporter):
    heard = []
    reporter = make_reporter(lambda name, details: heard.append(details))
    reporter.report("close_failed", reason="postgresql://u:hunter2@h is gone", tenant_id="a:b@c")
    assert reporter.drain(20)
    (details,) = heard
    assert details["reason"] == "postgresql://***@h is gone"
    assert details["tenant_id"] == "a:b@c"


def test_a_program_reads_kind_and_details_from_the_record(make_reporter, caplog):
    reporter = make_reporter()
    reporter.report("poisoned", events=2, attempts=10, file="f.batch", reason="no such column")
    assert reporter.drain(20)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert (record.logbun_kind, record.logbun_namespace) == ("poisoned", "ns")
    assert record.logbun_details["attempts"] == 10
    assert record.getMessage() == (
        "ns: Gave up the dead letter f.batch with 2 events after 10 scans: no such column. "
        "Mend the cause, then requeue the file. [poisoned]"
    )


def test_the_breaker_opens_lets_one_try_and_closes():
    clock = Clock()
    breaker = CircuitBreaker(threshold=2, first_pause=4.0, clock=clock, rng=lambda: 0.5)
    assert not breaker.failed()
    assert breaker.failed()
    assert breaker.is_open
    assert not breaker.allow()
    assert breaker.wait_time() == 4.0
    clock.now = 4
    assert breaker.allow()
    assert not breaker.allow()
    assert not breaker.failed()
    assert breaker.wait_time() == 8.0
    clock.now = 12
    assert breaker.allow()
    assert breaker.succeeded()
    assert not breaker.is_open
    assert not breaker.succeeded()


def test_the_queue_has_the_methods_of_the_stdlib_s():
    import queue

    found = RecordQueue()
    assert found.empty()
    with pytest.raises(queue.Empty):
        found.get(block=False)
    with pytest.raises(queue.Empty):
        found.get(timeout=0.01)
    found.put(1)
    found.put_nowait(2)
    assert (found.qsize(), found.get(), found.drain(5)) == (2, 1, [2])


def test_a_broken_handler_does_not_break_the_call(make_logger, caplog):
    class Broken(logging.Handler):
        def handle(self, record):
            raise RuntimeError("broken")

    audit = AuditLogger(make_logger(Broken()))
    audit.fire("a")
    assert asyncio.run(audit.fire_async("a")) is False
    assert caplog.text.count("RuntimeError: broken") == 2
    assert "AuditLogger('test.audit" in caplog.text
    assert repr(ALL_TENANTS) == "ALL_TENANTS"


def test_a_configuration_that_disables_other_loggers_silences_no_report(make_reporter, caplog):
    logger = logging.getLogger(LOGGER_NAME)
    logger.disabled = True  # what dictConfig does by default
    reporter = make_reporter()
    reporter.report("dropped", events=3)
    assert reporter.drain(20)
    assert "Dropped 3 events" in caplog.text


def test_the_wal_tells_what_has_happened_to_it(make_trail):
    happened = []
    trail = make_trail(
        mode="durable",
        wal={"max_bytes": None},
        on_event=lambda name, details: happened.append((name, details.get("max_bytes"))),
    )
    reporter = trail.pipeline.reporter
    reporter.wal_failed(WalRemovedError(2, "removed"), 0)
    reporter.wal_failed(OSError(28, "full"), 3)
    reporter.wal_nearly_full(8, 10)
    assert reporter.drain(20)
    assert happened == [("wal_removed", None), ("wal_failed", None), ("wal_nearly_full", 10)]
    assert trail.stats()["wal_removed"] == 1
