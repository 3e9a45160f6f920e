"""Calls with a time-out: what hangs, what is refused, and what comes late."""

from __future__ import annotations

import threading

import pytest

from logbun_logging import AdapterUnavailableError
from logbun_logging._engine.timed_calls import TimedCalls
from logbun_logging.errors import BusyError
from tests.fakes import wait_until


def test_a_call_that_hangs_costs_its_thread_and_no_other():
    calls, gate = TimedCalls("test"), threading.Event()
    with pytest.raises(AdapterUnavailableError, match=r"insert_timeout=0\.01"):
        calls.run(gate.wait, 0.01)
    assert calls.run(lambda: 5, 5) == 5
    with pytest.raises(ValueError, match="mine"):
        calls.run(lambda: (_ for _ in ()).throw(ValueError("mine")), 5)
    gate.set()
    calls.close()


def test_too_many_hanging_calls_are_refused():
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


def test_a_call_that_works_after_it_was_given_up_is_told_of():
    calls, gate, late = TimedCalls("test"), threading.Event(), threading.Event()
    with pytest.raises(AdapterUnavailableError, match="no answer"):
        calls.run(gate.wait, 0.01, "db", late.set)
    gate.set()
    assert late.wait(10)
    assert wait_until(lambda: calls.hanging == 0)
    calls.close()
