"""What goes wrong is told, to whom it concerns, and not too often."""

from __future__ import annotations

import logging

import pytest

from logbun_logging.adapters import create_adapter
from logbun_logging.breaker import CircuitBreaker
from logbun_logging.delivery import TimedCalls
from logbun_logging.errors import AdapterUnavailableError, BusyError, ConfigurationError
from logbun_logging.logger import AuditLogger
from logbun_logging.query import ALL_TENANTS
from logbun_logging.queueing import RecordQueue
from logbun_logging.reporting import LOGGER_NAME, Reporter
from logbun_logging.stats import Counters
from logbun_logging.wal import WalRemovedError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_one_kind_of_message_is_logged_once_in_ten_seconds(caplog):
    clock = Clock()
    heard = []
    reporter = Reporter("ns", lambda name, details: heard.append(details), Counters(), clock)
    for number in range(5):
        reporter.report("spilled", events=number)
    clock.now = 11
    reporter.report("spilled", events=5)
    assert [record.getMessage() for record in caplog.records] == [
        "ns: spilled events=0",
        "ns: spilled events=5 (4 more like this)",
    ]
    assert len(heard) == 6
    assert heard[0] == {"namespace": "ns", "events": 0}


def test_a_callback_that_raises_is_logged_and_ignored(caplog):
    def callback(name, details):
        raise RuntimeError("broken")

    Reporter("ns", callback, Counters()).report("spilled")
    assert "on_event_failed" in caplog.text
    assert "RuntimeError: broken" in caplog.text


def test_what_callers_count_is_reported_once():
    counters, heard = Counters(), []
    reporter = Reporter(
        "ns", lambda name, details: heard.append((name, details["events"])), counters
    )
    counters.add("dropped", 3)
    reporter.watch()
    reporter.watch()
    counters.add("dropped")
    reporter.watch()
    assert heard == [("dropped", 3), ("dropped", 1)]


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


def test_a_call_that_hangs_costs_its_thread_and_no_other():
    import threading

    calls, gate = TimedCalls("test"), threading.Event()
    with pytest.raises(AdapterUnavailableError, match=r"insert_timeout=0\.01"):
        calls.run(gate.wait, 0.01)
    assert calls.run(lambda: 5, 5) == 5
    with pytest.raises(ValueError, match="mine"):
        calls.run(lambda: (_ for _ in ()).throw(ValueError("mine")), 5)
    gate.set()
    calls.close()


def test_too_many_hanging_calls_are_refused():
    import threading

    calls, gate = TimedCalls("test"), threading.Event()
    for _ in range(4):
        with pytest.raises(AdapterUnavailableError):
            calls.run(gate.wait, 0.001, "db")
    with pytest.raises(BusyError, match="4 calls to the database hang already"):
        calls.run(gate.wait, 5, "db")
    assert calls.run(lambda: 1, 5, "other") == 1
    assert calls.hanging == 4
    for number in range(60):
        with pytest.raises(AdapterUnavailableError):
            calls.run(gate.wait, 0.001, f"db{number}")
    with pytest.raises(BusyError, match="64 calls to databases hang already"):
        calls.run(gate.wait, 5, "other")
    gate.set()
    calls.close()


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

    import asyncio

    audit = AuditLogger(make_logger(Broken()))
    audit.fire("a")
    assert asyncio.run(audit.fire_async("a")) is False
    assert caplog.text.count("RuntimeError: broken") == 2
    assert "AuditLogger('test.audit" in caplog.text
    assert repr(ALL_TENANTS) == "ALL_TENANTS"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///a.db?busy_timeout=soon", "busy_timeout"),
        ("sqlite:///a.db?colour=red", "adapter.colour='red'"),
        ("sqlite:///acme.db#", "%23"),
        ("sqlite:///acme.db#other", "%23"),
        ("sqlite:///acme.db?", "%3F"),
        ("sqlite:///acme.db?busy_timeout", "%3F"),
        ("sqlite:///ac\nme.db", "control characters"),
        ("sqlite:///ac%0Ame.db", "control characters"),
        ("sqlite:///ac%00me.db", "control characters"),
        ({"url": "oracle://x"}, "type"),
    ],
)
def test_an_adapter_that_cannot_be_made_says_why(url, message):
    with pytest.raises(ConfigurationError, match=message):
        create_adapter(url)


def test_a_url_may_carry_arguments(tmp_path):
    adapter = create_adapter(f"sqlite:///{tmp_path}/a%20b.db?busy_timeout=2.5")
    assert (adapter.path.name, adapter.busy_timeout) == ("a b.db", 2.5)


def test_a_configuration_that_disables_other_loggers_silences_no_report(caplog):
    logger = logging.getLogger(LOGGER_NAME)
    logger.disabled = True  # what dictConfig does by default
    Reporter("ns", None, Counters()).report("dropped", events=3)
    assert "dropped events=3" in caplog.text


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
    assert happened == [("wal_removed", None), ("wal_failed", None), ("wal_nearly_full", 10)]
    assert trail.stats()["wal_removed"] == 1
