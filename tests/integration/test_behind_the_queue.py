"""What stands behind the queue, in place of it, or in a subclass of the pair."""

from __future__ import annotations

import copy
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import queue
import sys
import threading

import pytest

from logbun_logging import (
    AuditLogger,
    AuditQueueHandler,
    AuditQueueListener,
    BatchingAuditHandler,
    ConfigurationError,
)
from logbun_logging._encoding.record import AuditRecord
from logbun_logging._engine.queue import RecordQueue
from logbun_logging._storage.wal.segment import AppendFile
from logbun_logging.event import Entry
from tests.fakes import wait_until

QUEUES = [RecordQueue, queue.Queue, queue.SimpleQueue]


class Kept(logging.Handler):
    """Keeps the records that come."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def put_together(make_trail):
    """Put a pair together by hand: the handler, with a trail and others behind the queue."""

    def put_together(*others, carried=None, mode="volatile", **classes):
        trail = make_trail(mode=mode)
        handler = classes.get("handler", AuditQueueHandler)(carried or queue.Queue())
        handler.listener = classes.get("listener", AuditQueueListener)(
            handler.queue,
            BatchingAuditHandler(trail=trail),
            *others,
            respect_handler_level=classes.get("respect_handler_level", False),
        )
        return handler

    return put_together


def actions(handler):
    assert handler.trail.flush(10)
    return [event.action for event in handler.trail.iter()][::-1]


def settled(handler):
    """Tell whether every event that was accepted is in the database, but for what filters kept."""
    stats = handler.trail.stats()
    done = stats["inserted"] + stats["filtered"]
    return stats["accepted"] == done and not stats["queued"] and not stats["lost"]


# ── filters ──


@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_a_filter_that_raises_lets_the_record_pass_and_is_counted(
    put_together, make_logger, mode, capsys
):
    handler = put_together(mode=mode)
    handler.listener.batching.addFilter(lambda record: record.msg != "bad" or 1 / 0)
    handler.listener.batching.addFilter(lambda record: record.msg != "worse" or sys.exit("no"))
    handler.listener.batching.addFilter(lambda record: record.msg != "kept back")
    log = make_logger(handler)
    for number in range(200):
        log.info({10: "bad", 20: "kept back", 30: "worse"}.get(number, "good"))
    assert sorted(actions(handler)) == ["bad", *["good"] * 197, "worse"]
    assert settled(handler)
    assert handler.trail.stats()["filter_failures"] == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


# ── queues ──


@pytest.mark.parametrize("mode", ["volatile", "durable"])
@pytest.mark.parametrize("others", [0, 1])
def test_a_bounded_queue_loses_no_event(put_together, make_logger, mode, others, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    gate = threading.Event()

    class Slow(logging.Handler):
        def emit(self, record):
            gate.wait(10)

    handler = put_together(*[Slow()] * others, carried=queue.Queue(3), mode=mode)
    log = make_logger(handler)
    audit = AuditLogger(log)
    try:
        for number in range(50):
            log.info("a", extra={"entity_id": str(number)})
            audit.fire("b", entity_id=str(number))
    finally:
        gate.set()
    assert sorted(actions(handler)) == [*["a"] * 50, *["b"] * 50]
    assert settled(handler)


def test_a_full_queue_does_not_keep_the_listener_from_ending(put_together, make_logger):
    gate, at_work = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record):
            at_work.set()
            gate.wait(10)

    handler = put_together(Slow(), carried=queue.Queue(1))
    log = make_logger(handler)
    log.info("one")
    assert at_work.wait(10)
    log.info("two")
    stopping = threading.Thread(target=handler.listener.stop)
    stopping.start()
    gate.set()
    stopping.join(10)
    assert not stopping.is_alive()
    assert handler.queue.empty()


def test_a_queue_that_copies_is_refused():
    context = multiprocessing.get_context("spawn")
    for carried in (context.Queue(), context.JoinableQueue(), context.SimpleQueue()):
        with pytest.raises(ConfigurationError, match="queue of this process"):
            AuditQueueHandler(carried)
        carried.close()


def test_what_takes_no_records_is_no_queue_unless_the_handler_puts_otherwise():
    class Sending(AuditQueueHandler):
        def enqueue(self, record):
            self.queue.append(record)

    with pytest.raises(
        ConfigurationError, match=r"queue=\[\]: allowed is an object with put_nowait"
    ):
        AuditQueueHandler([])
    Sending([]).close()


def test_a_copy_of_an_event_has_no_part_in_the_log_on_disk(tmp_path):
    number = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
    file = AppendFile(number)
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="descriptor"):
            make(file)
    entry = Entry("t", b"{}", segment=file, admitted=True)
    for copied in (copy.deepcopy(entry), pickle.loads(pickle.dumps(entry))):
        assert (copied.tenant_id, copied.payload) == ("t", b"{}")
        assert (copied.segment, copied.admitted) == (None, False)
    os.fstat(number)  # it is still open


@pytest.mark.parametrize("make", [queue.Queue, RecordQueue])
def test_every_task_of_the_queue_is_done(put_together, make_logger, make):
    handler = put_together(Kept(), carried=make())
    log = make_logger(handler)
    for _ in range(20):
        log.info("a")
    if make is queue.Queue:
        assert wait_until(lambda: not handler.queue.unfinished_tasks)
        handler.queue.join()
    handler.listener.stop()
    if make is queue.Queue:
        with pytest.raises(ValueError, match="too many"):
            handler.queue.task_done()
    assert len(actions(handler)) == 20


@pytest.mark.parametrize("make", QUEUES)
def test_a_sentinel_ends_the_listener_and_nothing_behind_it_is_left(
    put_together, make_logger, make
):
    kept = Kept()
    handler = put_together(kept, carried=make())
    log = make_logger(handler)
    log.info("one")
    worker = handler.listener._worker
    handler.listener.enqueue_sentinel()
    worker.join(10)
    assert not worker.alive
    log.info("two")
    handler.listener.stop()
    assert [record.msg for record in kept.records] == ["one", "two"]
    handler.listener.start()
    log.info("three")
    assert actions(handler) == ["one", "two", "three"]


def test_records_of_a_stock_handler_in_the_same_queue_are_events(put_together, make_logger):
    kept = Kept()
    handler = put_together(kept)
    make_logger(handler).info("ours")
    make_logger(logging.handlers.QueueHandler(handler.queue)).info("theirs")
    assert wait_until(lambda: len(kept.records) == 2)
    assert actions(handler) == ["ours", "theirs"]


# ── records ──


@pytest.mark.parametrize("make", QUEUES)
def test_records_behind_the_queue_are_the_caller_s(put_together, make_logger, make):
    kept = Kept()
    handler = put_together(kept, carried=make())
    filtered = []
    handler.listener.batching.addFilter(lambda record: filtered.append(record) or True)
    beside = Kept()
    log = make_logger(handler, beside)

    def work():
        try:
            raise ValueError("broken")
        except ValueError:
            log.warning(
                "moved %s to %d", "x", 7, extra={"tenant_id": "t"}, exc_info=True, stack_info=True
            )

    thread = threading.Thread(target=work, name="the caller")
    thread.start()
    thread.join()
    handler.listener.stop()
    (seen,) = kept.records
    (original,) = beside.records
    assert filtered == [seen]
    assert seen is not original
    assert isinstance(seen, AuditRecord)
    assert seen.getMessage() == seen.message == seen.msg == "moved x to 7"
    assert not seen.args
    assert seen.exc_info[0] is ValueError
    assert "ValueError: broken" in seen.exc_text
    assert "in work" in seen.stack_info
    same = ("name", "levelno", "levelname", "created", "msecs", "relativeCreated", "tenant_id")
    place = ("pathname", "filename", "module", "lineno", "funcName")
    who = ("thread", "threadName", "process", "processName")
    for name in (*same, *place, *who):
        assert getattr(seen, name) == getattr(original, name), name
    assert (seen.threadName, seen.funcName) == ("the caller", "work")
    text = logging.Formatter("%(levelname)s %(message)s").format(seen)
    assert text == logging.Formatter("%(levelname)s %(message)s").format(original)
    assert handler.trail.flush(10)
    (event,) = handler.trail.query(tenant_id="t").logs
    assert event == seen.event
    assert event.metadata.keys() == {"exc_info", "stack_info"}


def test_the_caller_s_record_stays_as_it_is(put_together, make_logger):
    class Tells(logging.Formatter):
        def formatException(self, ei):
            return "in its own words"

    for others in ((), (Kept(),)):
        handler = put_together(*others)
        beside = Kept()
        log = make_logger(handler, beside)
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("failed %s", "twice")
        (record,) = beside.records
        assert (record.msg, record.args, record.exc_text) == ("failed %s", ("twice",), None)
        assert Tells("%(message)s").format(record) == "failed twice\nin its own words"


def test_a_typed_call_behind_the_queue_is_of_the_thread_that_called(put_together, make_logger):
    kept = Kept()
    handler = put_together(kept)
    fire = AuditLogger(make_logger(handler)).fire
    thread = threading.Thread(target=fire, args=("a",), kwargs={"colour": "red"}, name="the caller")
    thread.start()
    thread.join()
    handler.listener.stop()
    (seen,) = kept.records
    assert (seen.threadName, seen.getMessage(), seen.colour) == ("the caller", "a", "red")
    assert handler.trail.flush(10)
    assert handler.trail.query().logs[0].metadata == {"colour": "red"}


def test_the_same_record_is_an_event_of_every_trail_that_it_comes_to(
    tmp_path, make_trail, make_logger
):
    one = make_trail(namespace="one", adapter=f"sqlite:///{tmp_path}/one.db")
    two = make_trail(namespace="two", adapter=f"sqlite:///{tmp_path}/two.db")
    audit = AuditLogger(make_logger(one.handler, BatchingAuditHandler(trail=two)))
    audit.fire("a", tenant_id="t")
    for trail in (one, two):
        assert trail.flush(10)
        assert [event.action for event in trail.query(tenant_id="t").logs] == ["a"]


# ── set-up ──


def test_a_listener_needs_one_batching_handler(make_trail):
    batching = BatchingAuditHandler(trail=make_trail())
    for handlers in ((), (logging.NullHandler(),), (batching, batching)):
        with pytest.raises(ConfigurationError, match="with one logbun_logging"):
            AuditQueueListener(queue.Queue(), *handlers)


def test_a_handler_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="namespace"):
        AuditQueueHandler()


def test_a_queue_that_would_be_ignored_is_refused(make_trail):
    trail = make_trail()
    for carried in (queue.Queue(5), queue.SimpleQueue()):
        with pytest.raises(ConfigurationError, match="absent beside the options"):
            AuditQueueHandler(carried, trail=trail)
    assert AuditQueueHandler(queue.Queue(), trail=trail).trail is trail  # dictConfig brings it


def test_another_listener_takes_over_or_is_refused(tmp_path, put_together, make_trail, make_logger):
    handler = put_together()
    log = make_logger(handler)
    log.info("one")
    before = handler.listener
    kept = Kept()
    handler.listener = AuditQueueListener(handler.queue, before.batching, kept)
    assert before._worker is None
    log.info("two")
    handler.listener = handler.listener
    assert actions(handler) == ["one", "two"]
    handler.listener.stop()
    assert [record.msg for record in kept.records] == ["two"]
    other = make_trail(namespace="other", adapter=f"sqlite:///{tmp_path}/other.db")
    for wrong in (
        None,
        logging.handlers.QueueListener(handler.queue),
        AuditQueueListener(queue.Queue(), before.batching),
        AuditQueueListener(handler.queue, BatchingAuditHandler(trail=other)),
    ):
        with pytest.raises(ConfigurationError, match="listener"):
            handler.listener = wrong


def test_a_handler_with_options_takes_no_listener_but_the_empty_one_of_dict_config(make_trail):
    handler = make_trail().handler
    own = handler.listener
    handler.listener = logging.handlers.QueueListener(queue.Queue())
    assert handler.listener is own
    with pytest.raises(ConfigurationError, match="listener"):
        handler.listener = logging.handlers.QueueListener(queue.Queue(), logging.NullHandler())


# ── subclasses ──


def test_what_a_subclass_prepares_is_the_event(put_together, make_logger):
    class Prepares(AuditQueueHandler):
        def prepare(self, record):
            prepared = super().prepare(record)
            prepared.msg = prepared.message = prepared.msg.replace("hunter2", "***")
            prepared.tenant_id = "t"
            return prepared

    kept, beside = Kept(), Kept()
    handler = put_together(kept, handler=Prepares)
    log = make_logger(handler, beside)
    log.info("login %s", "hunter2")
    AuditLogger(log).fire("hunter2 fired", actor_id="u")
    handler.listener.stop()
    assert [record.msg for record in kept.records] == ["login ***", "*** fired"]
    assert [record.getMessage() for record in beside.records] == ["login hunter2", "hunter2 fired"]
    assert handler.trail.flush(10)
    fired, login = handler.trail.query(tenant_id="t").logs
    assert (login.action, fired.action, fired.actor_id) == ("login ***", "*** fired", "u")
    assert settled(handler)


def test_a_record_may_be_queued_in_any_form(put_together, make_logger):
    class AsMapping(AuditQueueHandler):
        def prepare(self, record):
            return dict(vars(super().prepare(record)), exc_info=None)

        def enqueue(self, record):
            self.queue.put(pickle.dumps(record), timeout=5)

    class FromMapping(AuditQueueListener):
        def dequeue(self, block):
            item = super().dequeue(block)
            return item if item is self._sentinel else pickle.loads(item)

        def prepare(self, record):
            return logging.makeLogRecord(record)

    kept = Kept()
    handler = put_together(kept, handler=AsMapping, listener=FromMapping)
    log = make_logger(handler)
    log.info("one %d", 1, extra={"tenant_id": "t"})
    log.info("two")
    handler.listener.stop()
    assert [record.getMessage() for record in kept.records] == ["one 1", "two"]
    assert handler.trail.flush(10)
    assert [event.action for event in handler.trail.query(tenant_id="t").logs] == ["one 1"]
    assert handler.trail.stats()["accepted"] == 2
    assert settled(handler)


@pytest.mark.parametrize("method", ["prepare", "enqueue"])
def test_an_event_is_stored_although_a_method_of_the_handler_raises(
    put_together, make_logger, method, capsys
):
    def fails(self, record):
        raise OSError("no such socket")

    handler = put_together(handler=type("Fails", (AuditQueueHandler,), {method: fails}))
    make_logger(handler).info("a")
    assert actions(handler) == ["a"]
    assert "no such socket" in capsys.readouterr().err


def test_an_event_is_stored_although_the_listener_s_own_handle_drops_the_record(
    put_together, make_logger
):
    handled = []

    class Drops(AuditQueueListener):
        def handle(self, record):
            handled.append(record.getMessage())
            if record.getMessage() == "two":
                raise RuntimeError("broken")
            if record.getMessage() != "three":
                super().handle(record)

    kept = Kept()
    handler = put_together(kept, listener=Drops)
    handler.listener.batching.addFilter(lambda record: record.getMessage() != "four")
    log = make_logger(handler)
    logging.raiseExceptions = False
    try:
        for action in ("one", "two", "three", "four"):
            log.info(action)
        handler.listener.stop()
    finally:
        logging.raiseExceptions = True
    assert handled == ["one", "two", "three", "four"]
    assert [record.msg for record in kept.records] == ["one", "four"]
    assert actions(handler) == ["one", "two", "three"]
    assert settled(handler)


def test_a_method_that_is_patched_in_later_counts_from_the_next_start(
    put_together, make_logger, monkeypatch
):
    handler = put_together()
    called = []
    monkeypatch.setattr(handler.listener, "handle", called.append)
    log = make_logger(handler)
    for _ in range(5):
        log.info("a")
    handler.listener.stop()
    assert len(called) == 5
    assert actions(handler) == ["a"] * 5


def test_a_dequeue_that_always_fails_keeps_no_event_and_no_stop_back(
    put_together, make_logger, caplog
):
    class Fails(AuditQueueListener):
        def dequeue(self, block):
            raise OSError("no such socket")

    handler = put_together(listener=Fails)
    make_logger(handler).info("a")
    assert wait_until(lambda: "no such socket" in caplog.text)
    assert actions(handler) == ["a"]
    handler.listener.stop(10)
    assert handler.queue.empty()


def test_levels_behind_the_queue_hold_for_subclasses_too(put_together, make_logger):
    class Prepares(AuditQueueHandler):
        def prepare(self, record):
            return super().prepare(record)

    kept = Kept()
    kept.setLevel(logging.ERROR)
    handler = put_together(kept, handler=Prepares, respect_handler_level=True)
    handler.listener.batching.setLevel(logging.WARNING)
    log = make_logger(handler)
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "a%d", level)
    handler.listener.stop()
    assert [record.msg for record in kept.records] == ["a40"]
    assert actions(handler) == ["a30", "a40"]


def test_a_handler_that_its_own_listener_feeds_stores_each_event_once(put_together, make_logger):
    handler = AuditQueueHandler(queue.Queue())
    trail = put_together().trail
    handler.listener = AuditQueueListener(handler.queue, BatchingAuditHandler(trail=trail), handler)
    make_logger(handler).info("a")
    handler.listener.stop()
    assert actions(handler) == ["a"]


def test_a_handler_of_a_trail_that_logging_has_closed_opens_it_again(make_trail, make_logger):
    trail = make_trail()
    make_logger(trail.handler).info("one")
    trail.handler.close()
    kept = Kept()
    handler = AuditQueueHandler(queue.Queue())
    handler.listener = AuditQueueListener(handler.queue, BatchingAuditHandler(trail=trail), kept)
    make_logger(handler).info("two")
    assert actions(handler) == ["one", "two"]
    handler.listener.stop()
    assert [record.msg for record in kept.records] == ["two"]
    assert settled(handler)
