"""structlog's chains, as its users build them: what comes out is one and the same event."""

from __future__ import annotations

import io
import json
import logging
import queue

import pytest
import structlog
from structlog.processors import (
    EventRenamer,
    JSONRenderer,
    KeyValueRenderer,
    TimeStamper,
    add_log_level,
)
from structlog.stdlib import ExtraAdder, ProcessorFormatter

from logbun_logging import (
    AuditLogger,
    AuditQueueHandler,
    AuditQueueListener,
    BatchingAuditHandler,
    audit_context,
)
from logbun_logging.structlog import AuditProcessor


@pytest.fixture(autouse=True)
def fresh_structlog():
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def through_logging(make_logger):
    """Make structlog loggers in front of a stdlib logger with these handlers."""

    def through_logging(*handlers, processors, level=logging.INFO):
        log = make_logger(*handlers, level=level)
        return structlog.wrap_logger(
            log, processors=processors, wrapper_class=structlog.stdlib.BoundLogger
        )

    return through_logging


def events(trail, **filters):
    assert trail.flush(10)
    return trail.query(**filters).logs[::-1]


RECOMMENDED = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    add_log_level,
    structlog.stdlib.PositionalArgumentsFormatter(),
    TimeStamper(fmt="iso"),
    structlog.processors.StackInfoRenderer(),
]


def console(stream, *foreign):
    """A console handler as structlog's documentation recommends it."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        ProcessorFormatter(
            processors=[ProcessorFormatter.remove_processors_meta, JSONRenderer()],
            foreign_pre_chain=[ExtraAdder(), *foreign],
        )
    )
    return handler


def test_the_recommended_chain_makes_the_same_event_as_the_processor(make_trail, through_logging):
    trail = make_trail()
    for last in (ProcessorFormatter.wrap_for_formatter, AuditProcessor()):
        log = through_logging(trail.handler, processors=[*RECOMMENDED, last])
        structlog.contextvars.bind_contextvars(request_id="r1")
        with audit_context(ip_address="203.0.113.9"):
            log.bind(tenant_id="t").info("course.%s", "moved", actor_id="u", name="n", colour="red")
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("failed", tenant_id="t")
        log.info("where", tenant_id="t", stack_info=True)
    found = events(trail, tenant_id="t")
    assert [event.action for event in found] == ["course.moved", "failed", "where"] * 2
    for event in found:
        assert event.request_id == "r1"
    for moved, failed, where in (found[:3], found[3:]):
        assert (moved.actor_id, moved.ip_address) == ("u", "203.0.113.9")
        assert moved.metadata == {"name_": "n", "colour": "red"}
        assert "ValueError: broken" in failed.metadata["exc_info"]
        assert failed.metadata.keys() == {"exc_info"}
        assert where.metadata["stack"].startswith("Stack")


def test_console_and_audit_handler_stand_side_by_side(make_trail, through_logging):
    trail, stream = make_trail(), io.StringIO()
    log = through_logging(
        trail.handler,
        console(stream),
        processors=[*RECOMMENDED, ProcessorFormatter.wrap_for_formatter],
    )
    log.info("course.created", tenant_id="t", actor_id="u")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "course.created"
    assert json.loads(line)["tenant_id"] == "t"
    assert [event.actor_id for event in events(trail, tenant_id="t")] == ["u"]


def test_the_processor_stands_beside_a_console_that_reads_extras(make_trail, through_logging):
    trail, stream = make_trail(), io.StringIO()
    log = through_logging(
        trail.handler, console(stream, add_log_level), processors=[*RECOMMENDED, AuditProcessor()]
    )
    log.info("course.created", tenant_id="t", actor_id="u")
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert (said["event"], said["tenant_id"], said["actor_id"]) == ("course.created", "t", "u")
    assert [event.actor_id for event in events(trail, tenant_id="t")] == ["u"]


def test_an_audit_logger_of_its_own_leaves_the_application_s_logs_alone(make_trail):
    trail, stream = make_trail(), io.StringIO()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, add_log_level, JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    audit = structlog.wrap_logger(
        None, processors=[structlog.contextvars.merge_contextvars, AuditProcessor(trail)]
    )
    structlog.contextvars.bind_contextvars(request_id="r1")
    structlog.get_logger().info("creating", cid=7)
    audit.info("course.created", tenant_id="t")
    (line,) = stream.getvalue().splitlines()
    expected = {"event": "creating", "cid": 7, "level": "info", "request_id": "r1"}
    assert json.loads(line) == expected
    assert [event.request_id for event in events(trail, tenant_id="t")] == ["r1"]


WAYS = ["the processor", "the processor alone", "wrap_for_formatter"]


@pytest.fixture(params=WAYS)
def any_way(request, make_trail, through_logging):
    """Make a logger of these processors, with the audit at the end in every way there is."""

    def any_way(*processors):
        trail = make_trail()
        if request.param == "the processor alone":
            chain = [*processors, AuditProcessor(trail)]
            log = structlog.wrap_logger(None, processors=chain)
        else:
            wrap = ProcessorFormatter.wrap_for_formatter
            last = AuditProcessor() if request.param == "the processor" else wrap
            log = through_logging(trail.handler, processors=[*processors, last])
        return trail, log

    return any_way


def test_what_the_caller_calls_level_logger_or_timestamp_stays(any_way):
    trail, log = any_way()
    mine = {"level": "high", "log_level": 3, "logger": "app", "timestamp": "2020-01-01T00:00:00Z"}
    log.info("alarm.raised", **mine)
    log.info("alarm.raised", timestamp=7.5)
    log.info("alarm.raised", timestamp={"not": "a time"})
    first, second, third = events(trail)
    assert first.metadata == mine
    assert second.metadata == {"timestamp": 7.5}
    assert third.metadata == {"timestamp": {"not": "a time"}}


@pytest.mark.parametrize(
    "stamper",
    [
        TimeStamper(),
        TimeStamper(fmt="iso"),
        TimeStamper(fmt="iso", utc=False),
        TimeStamper(fmt="%Y-%m-%d %H:%M:%S"),
    ],
)
def test_what_structlog_adds_of_level_logger_and_time_is_left_out(any_way, stamper):
    trail, log = any_way(add_log_level, stamper)
    log.info("a")
    log.warning("b", colour="red")
    assert [event.metadata for event in events(trail)] == [None, {"colour": "red"}]


def test_no_name_that_logging_refuses_is_lost_to_another(any_way):
    trail, log = any_way()
    log.info("a", name="one", name_="two", args="three")
    assert events(trail)[0].metadata == {"name__": "one", "name_": "two", "args_": "three"}


@pytest.mark.parametrize("to", ["msg", "message"])
def test_a_renamed_event_is_the_action(any_way, to):
    trail, log = any_way(EventRenamer(to))
    log.info("course.created", colour="red")
    (event,) = events(trail)
    assert (event.action, event.metadata) == ("course.created", {"colour": "red"})


def test_levels_hold_without_stdlib_loggers(make_trail):
    trail = make_trail()
    log = structlog.wrap_logger(
        None, processors=[AuditProcessor(trail, logger_name="test.structlog.levels")]
    )
    log.info("stored: no level is set")
    trail.handler.setLevel(logging.WARNING)
    log.info("kept back by the handler")
    trail.handler.setLevel(logging.NOTSET)
    logging.getLogger("test.structlog.levels").setLevel(logging.ERROR)
    log.warning("kept back by the logger")
    log.error("stored")
    assert [event.action for event in events(trail)] == ["stored: no level is set", "stored"]


@pytest.mark.parametrize(
    "renderer", [JSONRenderer(), KeyValueRenderer(), ProcessorFormatter.wrap_for_formatter]
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_processor_behind_a_renderer_stores_what_it_can_and_says_so_once(
    make_trail, through_logging, caplog, renderer, alone
):
    trail = make_trail()
    if renderer is ProcessorFormatter.wrap_for_formatter:
        chain = [lambda _logger, _name, event: ((dict(event),), {"extra": {}})]
    else:
        chain = [renderer]
    if alone:
        log = structlog.wrap_logger(None, processors=[*chain, AuditProcessor(trail)])
    else:
        log = through_logging(trail.handler, processors=[*chain, AuditProcessor()])
    log.info("course.created", colour="red")
    log.info("course.created", colour="red")
    found = events(trail)
    assert len(found) == 2
    if isinstance(renderer, KeyValueRenderer):
        assert "course.created" in found[0].action
    else:
        assert found[0].action == "course.created"
        assert found[0].metadata == {"colour": "red"}
    told = [record for record in caplog.records if record.name == "logbun_logging"]
    assert len(told) == 1
    assert "renders" in told[0].getMessage()


def test_a_rendered_message_is_stored_as_it_is_and_counted(make_trail, through_logging):
    told = []
    trail = make_trail(on_event=lambda name, details: told.append(name))
    log = through_logging(trail.handler, processors=[add_log_level, JSONRenderer()])
    log.info("course.created", tenant_id="t")
    (event,) = events(trail)  # of no tenant: who writes a message must not choose the tenant
    assert json.loads(event.action)["event"] == "course.created"
    assert trail.stats()["rendered"] == 1
    trail.shutdown()
    assert told.count("rendered") == 1


def test_a_dictionary_that_is_not_structlog_s_is_a_message(make_trail, make_logger):
    trail = make_trail()
    log = make_logger(trail.handler)
    log.info({"event": "a", "tenant_id": "t"})
    AuditLogger(log).fire({"event": "a", "tenant_id": "t"})
    found = events(trail)
    assert [event.action for event in found] == ["{'event': 'a', 'tenant_id': 't'}"] * 2


def test_a_console_behind_the_queue_still_finds_the_event_dictionary(make_trail, through_logging):
    trail, stream = make_trail(), io.StringIO()
    handler = AuditQueueHandler(queue.Queue())
    handler.listener = AuditQueueListener(
        handler.queue, BatchingAuditHandler(trail=trail), console(stream)
    )
    log = through_logging(handler, processors=[*RECOMMENDED, ProcessorFormatter.wrap_for_formatter])
    log.info("course.created", tenant_id="t", actor_id="u")
    handler.listener.stop()
    assert json.loads(stream.getvalue())["actor_id"] == "u"
    assert [event.actor_id for event in events(trail, tenant_id="t")] == ["u"]
