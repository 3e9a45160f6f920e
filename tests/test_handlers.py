"""Set-up by dictConfig in every form, and what the handlers do with records."""

from __future__ import annotations

import json
import logging
import logging.config
import pickle
import queue
import sys
import threading

import pytest

import logbun_logging
from logbun_logging import AuditQueueListener, AuditTrail, BatchingAuditHandler, ConfigurationError
from tests.fakes import MemoryAdapter, wait_until

NEEDS_312 = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="dictConfig knows queue handlers since Python 3.12"
)


@pytest.fixture
def configure(tmp_path):
    """Configure logging with one audit handler; everything is undone at the end."""

    def configure(handler=None, **more):
        handlers = {
            "audit": {
                "class": "logbun_logging.AuditQueueHandler",
                "namespace": "configured",
                "data_dir": str(tmp_path / "data"),
                "adapter": f"sqlite:///{tmp_path}/audit.db",
                **(handler or {}),
            }
        }
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": handlers,
            "loggers": {
                "configured.audit": {"level": "INFO", "handlers": ["audit"], "propagate": False}
            },
        }
        config.update(more)
        logging.config.dictConfig(config)
        return logging.getLogger("configured.audit")

    yield configure
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    logging.getLogger("configured.audit").handlers.clear()


def actions(namespace="configured", **filters):
    trail = logbun_logging.get_trail(namespace)
    assert trail.flush(20)
    return [event.action for event in trail.query(**filters).logs][::-1]


def test_one_entry_is_enough(configure):
    configure().info("course.created", extra={"tenant_id": "t1"})
    assert actions(tenant_id="t1") == ["course.created"]


def test_the_class_is_a_real_queue_handler(configure):
    handler = configure().handlers[0]
    assert isinstance(handler, logging.handlers.QueueHandler)
    assert isinstance(handler, logbun_logging.AuditQueueHandler)
    assert isinstance(handler.listener, logging.handlers.QueueListener)


@pytest.mark.parametrize("name", ["AuditQueueListener", "BatchingAuditHandler"])
def test_a_class_behind_the_queue_is_found_beside_the_handler_too(name):
    found = getattr(logbun_logging.handlers, name)
    assert found is getattr(logbun_logging, name)
    assert pickle.loads(pickle.dumps(found)) is found  # as a process that is spawned gets it


def test_an_adapter_may_be_a_mapping_or_an_object(configure, tmp_path):
    configure({"adapter": {"type": "sqlite", "path": str(tmp_path / "m.db")}}).info("a")
    assert actions() == ["a"]
    adapter = MemoryAdapter()
    configure({"adapter": adapter}).info("b")
    assert actions() == ["b"]
    assert len(adapter.events) == 1


def test_references_are_resolved_wherever_they_stand(configure, tmp_path):
    log = configure(
        {
            "adapter": {"type": "cfg://own.kind", "path": f"{tmp_path}/r.db"},
            "on_event": "ext://builtins.print",
            "batching": "cfg://own.batching",
        },
        own={"kind": "sqlite", "batching": {"max_size": 7}},
    )
    trail = log.handlers[0].trail
    assert trail.options.batching.max_size == 7
    assert trail.options.on_event is print
    log.info("a")
    assert actions() == ["a"]


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_configuration_may_come_from_a_file(configure, tmp_path, form):
    handler = {"batching": {"max_size": 10, "flush_interval": 0.5}, "mode": "durable"}
    text = json.dumps(handler)
    if form == "yaml":
        yaml = pytest.importorskip("yaml")
        text = yaml.safe_dump(handler)
        handler = yaml.safe_load(text)
    else:
        handler = json.loads(text)
    configure(handler).info("a")
    assert logbun_logging.get_trail("configured").options.mode == "durable"
    assert actions() == ["a"]


def stdlib_form(tmp_path, queue="queue.Queue"):
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {
            "batching": {
                "class": "logbun_logging.BatchingAuditHandler",
                "namespace": "configured",
                "data_dir": str(tmp_path / "data"),
                "adapter": f"sqlite:///{tmp_path}/audit.db",
                "level": "WARNING",
            },
            "seen": {"class": "tests.test_handlers.Seen"},
            "audit": {
                "class": "logbun_logging.AuditQueueHandler",
                "queue": queue,
                "listener": "logbun_logging.AuditQueueListener",
                "handlers": ["batching", "seen"],
                "respect_handler_level": True,
            },
        },
        "loggers": {"configured.audit": {"level": "INFO", "handlers": ["audit"]}},
    }


class Seen(logging.Handler):
    """Remembers what came, formatted."""

    messages: list[str]

    def __init__(self):
        super().__init__()
        self.messages = []
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s %(actor_id)s %(lineno)d"))

    def emit(self, record):
        self.messages.append(self.format(record))


@NEEDS_312
@pytest.mark.parametrize("queue", ["queue.Queue", "logbun_logging._engine.queue.RecordQueue"])
def test_the_form_of_the_stdlib_works_and_starts_by_itself(configure, tmp_path, queue):
    config = stdlib_form(tmp_path, queue)
    if queue.startswith("logbun") and sys.version_info < (3, 13):
        pytest.skip("Python 3.12 takes subclasses of queue.Queue only")
    logging.config.dictConfig(config)
    log = logging.getLogger("configured.audit")
    log.propagate = False
    seen = next(h for h in log.handlers[0].listener.handlers if isinstance(h, Seen))
    log.info("too.low", extra={"actor_id": "u"})
    log.warning("high.enough", extra={"actor_id": "u"})
    assert actions() == ["high.enough"]
    log.handlers[0].listener.stop()
    assert [message.split()[:3] for message in seen.messages] == [
        ["INFO", "too.low", "u"],
        ["WARNING", "high.enough", "u"],
    ]


def test_the_parts_can_be_put_together_by_hand(make_trail, make_logger):
    trail = make_trail()
    handler = logbun_logging.AuditQueueHandler(queue.Queue())
    handler.listener = AuditQueueListener(handler.queue, BatchingAuditHandler(trail=trail))
    make_logger(handler).info("a")
    assert actions("test") == ["a"]


def test_a_listener_without_a_batching_handler_is_refused():
    handler = logbun_logging.AuditQueueHandler(queue.Queue())
    with pytest.raises(ConfigurationError, match="BatchingAuditHandler"):
        handler.listener = AuditQueueListener(handler.queue, logging.NullHandler())
    with pytest.raises(ConfigurationError, match="listener"):
        handler.listener = logging.handlers.QueueListener(handler.queue)
    with pytest.raises(ConfigurationError, match="namespace"):
        _ = handler.trail


def test_a_batching_handler_needs_no_queue(make_trail, make_logger):
    make_logger(BatchingAuditHandler(trail=make_trail())).info("direct")
    assert actions("test") == ["direct"]


def test_configuring_again_under_load_loses_nothing(configure):
    log = configure({"mode": "durable"})
    stop = threading.Event()
    counts = [0, 0]

    def work(number):
        while not stop.wait(0.0005):
            log.info("a", extra={"tenant_id": f"t{number}", "entity_id": str(counts[number])})
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    first = logbun_logging.get_trail("configured")
    configure({"mode": "durable"})
    second = logbun_logging.get_trail("configured")
    configure({"mode": "durable"})
    stop.set()
    for thread in threads:
        thread.join()
    assert first is not second
    assert first.pipeline.closing
    third = logbun_logging.get_trail("configured")
    assert third.flush(20)
    for number in range(2):
        found = [event.entity_id for event in third.iter(tenant_id=f"t{number}")]
        assert len(found) == len(set(found))
    assert first.stats()["lost"] == second.stats()["lost"] == third.stats()["lost"] == 0
    total = sum(trail.stats()["accepted"] for trail in (first, second, third))
    rows = sum(1 for _ in third.iter(tenant_id=logbun_logging.ALL_TENANTS))
    assert rows == total


def test_a_call_on_a_closed_handler_goes_to_the_trail_that_took_over(make_trail, make_logger):
    first = make_trail()
    log = make_logger(first.handler)
    log.info("one")
    second = make_trail()
    log.info("two")
    assert second.flush(20)
    assert {event.action for event in second.query().logs} == {"one", "two"}


def test_a_call_after_the_end_is_counted_and_does_not_raise(make_trail, make_logger):
    trail = make_trail()
    log = make_logger(trail.handler)
    log.info("one")
    trail.shutdown()
    log.info("late")
    stats = trail.stats()
    assert stats["lost"] == 1
    assert stats["accepted"] == 2


def test_several_loggers_and_namespaces_do_not_mix(tmp_path, make_trail, make_logger):
    one = make_trail(namespace="one", adapter=f"sqlite:///{tmp_path}/one.db")
    two = make_trail(namespace="two", adapter=f"sqlite:///{tmp_path}/two.db")
    make_logger(one.handler).info("a")
    make_logger(one.handler).info("b")
    make_logger(two.handler, one.handler).info("c")
    logbun_logging.AuditLogger(make_logger(two.handler, one.handler)).fire("d")
    assert actions("one") == ["a", "b", "c", "d"]
    assert actions("two") == ["c", "d"]


def test_propagation_brings_records_to_other_handlers(make_trail, make_logger):
    seen = Seen()
    root = logging.getLogger()
    root.addHandler(seen)
    try:
        log = make_logger(make_trail().handler, propagate=True)
        log.info("course.created %s", "x", extra={"actor_id": "u"})
        logbun_logging.AuditLogger(log).fire("fired", actor_id="v")
    finally:
        root.removeHandler(seen)
    assert [message.split()[:4] for message in seen.messages] == [
        ["INFO", "course.created", "x", "u"],
        ["INFO", "fired", "v", "0"],
    ]


def test_levels_and_filters_hold(make_trail, make_logger):
    trail = make_trail()
    log = make_logger(trail.handler)
    trail.handler.setLevel(logging.WARNING)
    audit = logbun_logging.AuditLogger(log)
    log.info("low")
    audit.fire("low")
    trail.handler.setLevel(logging.NOTSET)

    def tenant(record):
        record.tenant_id = "from-filter"
        return record.getMessage() != "filtered"

    trail.handler.addFilter(tenant)
    log.info("filtered")
    audit.fire("filtered")
    audit.fire("kept", colour="red")
    log.info("kept")
    trail.handler.removeFilter(tenant)
    log.disabled = True
    audit.fire("disabled")
    log.disabled = False
    assert actions("test", tenant_id="from-filter") == ["kept", "kept"]
    assert actions("test") == []


def test_messages_are_formatted_once_and_never_raise(make_trail, make_logger):
    trail = make_trail()
    log = make_logger(trail.handler)
    log.info("user.%s", "login")
    log.info("bad %d", "text")
    log.info(42)
    assert actions("test") == ["user.login", "bad %d", "42"]


def test_a_traceback_is_kept(make_trail, make_logger):
    trail = make_trail()
    log = make_logger(trail.handler)
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed", extra={"actor_id": "u"})
    log.info("where", stack_info=True)
    assert trail.flush(20)
    where, failed = trail.query().logs
    assert "ValueError: broken" in failed.metadata["exc_info"]
    assert "test_a_traceback_is_kept" in where.metadata["stack_info"]


def test_what_the_caller_changes_afterwards_is_not_in_the_event(make_trail, make_logger):
    trail = make_trail()
    values = {"title": "before", "nested": {"n": 1}}
    make_logger(trail.handler).info("a", extra={"new_values": values})
    values["title"] = "after"
    values["nested"]["n"] = 2
    assert trail.flush(20)
    assert trail.query().logs[0].new_values == {"title": "before", "nested": {"n": 1}}


def test_our_own_reports_never_become_events(make_trail):
    adapter = MemoryAdapter()
    trail = make_trail(adapter=adapter, retry={"max_retries": 0})
    root = logging.getLogger()
    root.addHandler(trail.handler)
    try:
        adapter.down = True
        root.warning("from the root logger")
        assert trail.flush(20)
    finally:
        root.removeHandler(trail.handler)
    assert trail.stats()["accepted"] == 1
    assert trail.stats()["dead_lettered"] == 1


def test_a_handler_that_raises_does_not_end_the_listener(tmp_path, make_trail, make_logger, capsys):
    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("broken")

    trail = make_trail()
    handler = logbun_logging.AuditQueueHandler(queue.Queue())
    handler.listener = AuditQueueListener(
        handler.queue, Broken(), BatchingAuditHandler(trail=trail)
    )
    log = make_logger(handler)
    log.info("one")
    assert trail.flush(20)
    log.info("two")
    assert actions("test") == ["one", "two"]
    assert "RuntimeError: broken" in capsys.readouterr().err


def test_a_trail_answers_to_its_namespace(make_trail):
    trail = make_trail()
    assert logbun_logging.get_trail("test") is trail
    assert isinstance(trail, AuditTrail)
    with pytest.raises(LookupError, match="other"):
        logbun_logging.get_trail("other")


def test_what_a_level_behind_the_queue_keeps_back_holds_nothing_up(make_trail, make_logger):
    trail = make_trail(mode="durable")
    batching = BatchingAuditHandler(trail=trail)
    batching.setLevel(logging.WARNING)
    handler = logbun_logging.AuditQueueHandler(queue.Queue())
    handler.listener = AuditQueueListener(handler.queue, batching, respect_handler_level=True)
    log = make_logger(handler)
    log.info("low")
    log.warning("high")
    batching.addFilter(lambda record: record.getMessage() != "filtered")
    log.warning("filtered")
    assert actions("test") == ["high"]
    assert trail.stats()["queued"] == 0
    stats = trail.stats()
    assert (stats["accepted"], stats["inserted"], stats["filtered"]) == (3, 1, 2)


def configure_without_audit():
    """Do what a server does that configures logging for itself, after the application has."""
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})


@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_a_configuration_that_does_not_name_the_audit_logger_loses_nothing(
    make_trail, make_logger, mode
):
    trail = make_trail(namespace=mode, mode=mode)
    log = make_logger(trail.handler)
    audit = logbun_logging.AuditLogger(log)
    log.info("logged")
    configure_without_audit()
    assert trail.pipeline.closing
    audit.fire("fired")
    configure_without_audit()
    trail.handler.close()
    for _ in range(2):
        assert logbun_logging.get_trail(mode) is trail
        log.info("again")
    assert actions(mode) == ["logged", "fired", "again", "again"]
    stats = trail.stats()
    assert (stats["accepted"], stats["inserted"], stats["lost"]) == (4, 4, 0)
    trail.shutdown()
    log.info("late")
    configure_without_audit()
    log.info("late")
    stats = trail.stats()
    assert (stats["lost"], stats["wal"]["deferred"]) == ((0, 2) if mode == "durable" else (2, 0))
    assert stats["accepted"] == 6
    with pytest.raises(LookupError):
        logbun_logging.get_trail(mode)


def test_configuring_for_others_under_load_loses_nothing(make_trail, make_logger):
    trail = make_trail(mode="durable")
    log = make_logger(trail.handler)
    stop = threading.Event()
    counts = [0, 0]

    def work(number):
        while not stop.wait(0.0005):
            log.info("a", extra={"tenant_id": f"t{number}", "entity_id": str(counts[number])})
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for done in (20, 40, 60):
        assert wait_until(lambda done=done: min(counts) > done)
        configure_without_audit()
    stop.set()
    for thread in threads:
        thread.join()
    log.info("opens it again, if nothing else has")
    assert trail.flush(20)
    for number in range(2):
        found = [int(event.entity_id) for event in trail.iter(tenant_id=f"t{number}")]
        assert sorted(found) == list(range(counts[number]))
    assert trail.stats()["lost"] == 0
