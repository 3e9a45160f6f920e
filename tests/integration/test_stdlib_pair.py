"""CPython's own tests of ``QueueHandler`` and ``QueueListener``, with our pair in their place.

The tests are those of the interpreter that runs this. Every difference stands in a table with its
reason; a new one fails, and so does one that is gone.
"""

from __future__ import annotations

import itertools
import logging
import logging.config
import logging.handlers
import sys
import unittest
import warnings

import pytest

from logbun_logging import AuditQueueHandler, AuditQueueListener, AuditTrail, BatchingAuditHandler
from tests.fakes import MemoryAdapter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    stdlib = pytest.importorskip(
        "test.test_logging",
        reason="this interpreter comes without its tests: install its test package "
        "(Debian: libpython3-testsuite), or nothing here is tested",
        exc_type=ImportError,
    )

_COPIES = (
    "multiprocessing's queues are refused: they copy what they carry",
    "a queue of this process",
)

#: Cases that differ, each with the reason and what its failure says.
DIFFERENCES = {
    "QueueHandlerTest.test_formatting": (
        "the message is the action: the handler's formatter has no effect on it",
        "AssertionError: 'que -> WARNING: 1' != '1'",
    ),
    "QueueListenerTest.test_handle_called_with_mp_queue": _COPIES,
    "QueueListenerTest.test_no_messages_in_queue_after_stop": _COPIES,
    "ConfigDictTest.test_111615": _COPIES,
    "ConfigDictTest.test_config_queue_handler_does_not_create_multiprocessing_manager": _COPIES,
    "ConfigDictTest.test_config_queue_handler_multiprocessing_context": _COPIES,
    "ConfigDictTest.test_multiprocessing_queues": _COPIES,
    "ConfigDictTest.test_kwargs_passing": (
        "a listener of another queue is refused: nobody would read the handler's",
        "a listener of the handler's own queue",
    ),
}

#: Cases that take the record out of the queue, so that no listener gets it.
READS_THE_QUEUE = {"QueueHandlerTest.test_queue_handler"}


def cases():
    """Name every test of the interpreter that is about the pair."""
    for name in ("QueueHandlerTest", "QueueListenerTest", "ConfigDictTest"):
        for method in unittest.defaultTestLoader.getTestCaseNames(getattr(stdlib, name)):
            about_it = "queue" in method or method in {"test_111615", "test_kwargs_passing"}
            if name != "ConfigDictTest" or about_it:
                yield f"{name}.{method}"


class OurPair:
    """Classes that are made as the stock ones are; each queue has a trail of its own."""

    def __init__(self):
        self.trails = []
        names = itertools.count()

        def trail_of(carried):
            for trail, queue in self.trails:
                if queue is carried and not trail.pipeline.closing:
                    return trail
            trail = AuditTrail(
                namespace=f"stdlib-{next(names)}", adapter=MemoryAdapter(), flush_timeout=1
            )
            self.trails.append((trail, carried))
            return trail

        class QueueListener(AuditQueueListener):
            def __init__(self, queue, *handlers, respect_handler_level=False):
                batching = BatchingAuditHandler(trail=trail_of(queue))
                super().__init__(
                    queue, *handlers, batching, respect_handler_level=respect_handler_level
                )

        class NotStarted(QueueListener):
            """Stands for none, which the stock handler may have: the test reads the queue."""

            def __init__(self, queue):
                super().__init__(queue, logging.NullHandler())

            def start(self):
                return

        class QueueHandler(AuditQueueHandler):
            def __init__(self, queue):
                super().__init__(queue)
                self.listener = NotStarted(queue)

        class CustomListener(QueueListener):
            pass

        self.handler, self.listener, self.custom = QueueHandler, QueueListener, CustomListener


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Put our pair in the place of the stock one."""
    monkeypatch.chdir(tmp_path)
    pair = OurPair()
    monkeypatch.setattr(logging.handlers, "QueueHandler", pair.handler)
    monkeypatch.setattr(logging.handlers, "QueueListener", pair.listener)
    if hasattr(stdlib, "CustomListener"):
        monkeypatch.setattr(stdlib, "CustomListener", pair.custom)
    yield pair
    for trail, _ in pair.trails:
        trail.shutdown(5)


def run(name):
    """Run one case without pytest's handlers; return what it says when it fails."""
    case, method = name.split(".")
    result = unittest.TestResult()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(stdlib, case)(method).run(result)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    if result.skipped:
        pytest.skip(result.skipped[0][1])
    return "\n".join(text for _, text in [*result.failures, *result.errors])


@pytest.mark.parametrize("name", sorted(cases()))
def test_the_interpreter_s_own_tests_take_our_pair_for_theirs(pair, name):
    said = run(name)
    if name in DIFFERENCES:
        reason, expected = DIFFERENCES[name]
        assert said, f"it no longer differs; take it off the table: {reason}"
        assert expected in said
        return
    assert not said
    if name in READS_THE_QUEUE:
        return
    for trail, _ in pair.trails:
        trail.flush(5)
        stats = trail.stats()
        assert stats["accepted"] == stats["inserted"]
        assert not stats["lost"]


def test_the_tests_are_there():
    found = set(cases())
    assert len(found) >= 9
    assert "QueueListenerTest.test_handle_called_with_queue_queue" in found
    dict_config = "ConfigDictTest.test_config_queue_handler" in found
    assert dict_config == (sys.version_info >= (3, 12))
