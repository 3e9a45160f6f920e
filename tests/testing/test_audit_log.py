"""The fixture captures what every face logs, and its assertions say what was logged instead."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import threading
import uuid
from datetime import UTC, datetime
from unittest.mock import ANY

import pytest
import structlog

from logbun_logging import (
    ALL_TENANTS,
    AuditLogger,
    BatchingAuditHandler,
    QueryError,
    audit_context,
    get_trail,
)
from logbun_logging.structlog import AuditProcessor
from logbun_logging.testing import capture_events


@pytest.fixture
def audit_log():
    """The plug-in's, also where the installed package is older than this file."""
    with capture_events() as log:
        yield log


@pytest.fixture
def nowhere(tmp_path):
    """Options of a trail whose database and files must never be touched."""
    return {
        "namespace": "nowhere",
        "mode": "durable",
        "data_dir": tmp_path / "data",
        "adapter": f"sqlite:///{tmp_path}/audit.db",
    }


def refusal(call, *args, **kwargs):
    with pytest.raises(AssertionError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# ── what is captured ──


def test_a_plain_logger_is_captured_with_context_and_redaction(
    audit_log, make_trail, make_logger, nowhere
):
    trail = make_trail(**nowhere, redact=["password"])
    with audit_context(tenant_id="t1", ip_address="203.0.113.9"):
        make_logger(trail.handler).info(
            "%s.created", "user", extra={"actor_id": "u1", "new_values": {"password": "secret"}}
        )
    (event,) = audit_log.events
    assert (event.action, event.tenant_id, event.ip_address) == (
        "user.created",
        "t1",
        "203.0.113.9",
    )
    assert event.new_values == {"password": "[REDACTED]"}


def test_neither_file_nor_thread_nor_database_is_touched(
    audit_log, make_trail, make_logger, nowhere, tmp_path
):
    threads = {*threading.enumerate()}
    trail = make_trail(**nowhere)
    make_logger(trail.handler).info("course.created")
    assert trail.ready()
    assert trail.flush()
    assert trail.run_maintenance()
    assert trail.prune() == {}
    assert {*threading.enumerate()} <= threads
    assert trail.shutdown()
    assert list(tmp_path.iterdir()) == []


def test_an_application_that_configures_itself_in_the_test_is_captured(
    audit_log, nowhere, tmp_path
):
    name = f"app.{uuid.uuid4()}"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "audit": {
                    "class": "logbun_logging.AuditQueueHandler",
                    **{key: str(value) for key, value in nowhere.items()},
                }
            },
            "loggers": {name: {"level": "INFO", "handlers": ["audit"], "propagate": False}},
        }
    )
    try:
        logging.getLogger(name).info("course.created", extra={"tenant_id": "t1"})
        logging.getLogger(name).debug("not.logged")
        audit_log.assert_logged("course.created", times=1)
        audit_log.assert_not_logged("not.logged")
        assert get_trail("nowhere").query(tenant_id="t1").logs == audit_log.events
    finally:
        logging.getLogger(name).handlers[0].close()
        logging.getLogger(name).handlers.clear()
    assert list(tmp_path.iterdir()) == []


def test_typed_calls_are_captured(audit_log, make_trail, make_logger, nowhere):
    trail = make_trail(**nowhere)
    audit = AuditLogger(make_logger(trail.handler), actions=["course.created"])
    audit.fire("course.created", entity_id="7")
    assert asyncio.run(audit.fire_async("course.deleted", entity_id="7"))
    assert [event.action for event in audit_log.events] == ["course.created", "course.deleted"]
    assert trail.stats()["unknown_action"] == 1


def test_a_record_carries_its_event_to_other_handlers(audit_log, make_trail, make_logger, nowhere):
    seen = []

    class Other(logging.Handler):
        def emit(self, record):
            seen.append(record.event)

    AuditLogger(make_logger(make_trail(**nowhere).handler, Other())).fire("course.created")
    assert seen == audit_log.events


def test_structlog_is_captured_with_and_without_stdlib_loggers(
    audit_log, make_trail, make_logger, nowhere
):
    trail = make_trail(**nowhere)
    end = structlog.wrap_logger(None, processors=[AuditProcessor(trail)])
    end.bind(actor_id="u1").info("course.created", entity_id="7")
    through = structlog.wrap_logger(
        make_logger(trail.handler),
        processors=[AuditProcessor()],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    through.bind(actor_id="u2").info("course.deleted", entity_id="7")
    audit_log.assert_logged("course.created", actor_id="u1", entity_id="7")
    audit_log.assert_logged("course.deleted", actor_id="u2", entity_id="7")


def test_a_batching_handler_without_a_queue_is_captured(
    audit_log, make_trail, make_logger, nowhere, tmp_path
):
    handler = BatchingAuditHandler(trail=make_trail(**nowhere))
    make_logger(handler).info("course.created")
    audit_log.assert_logged("course.created", times=1)
    assert list(tmp_path.iterdir()) == []


def test_every_trail_is_captured_and_answers_for_itself(
    audit_log, make_trail, make_logger, nowhere, tmp_path
):
    trails = [
        make_trail(**{**nowhere, "namespace": name, "data_dir": tmp_path}) for name in ("a", "b")
    ]
    for trail in trails:
        make_logger(trail.handler).info(f"from.{trail.options.namespace}")
    assert len(audit_log.events) == 2
    for trail in trails:
        (event,) = trail.query(tenant_id=ALL_TENANTS).logs
        assert event.action == f"from.{trail.options.namespace}"


def test_what_a_trail_would_refuse_is_not_among_the_events(
    audit_log, make_trail, make_logger, nowhere
):
    logger = make_logger(make_trail(**nowhere, require_tenant_id=True).handler)
    logger.info("course.created")
    logger.info("course.created", extra={"tenant_id": "t1"})
    assert [event.tenant_id for event in audit_log.events] == ["t1"]
    assert [event.tenant_id for event in audit_log.refused] == [None]
    shown = refusal(audit_log.assert_logged, "course.created", tenant_id="t2")
    assert "refused, because they have no tenant: 1" in shown


def test_a_logger_without_a_handler_can_be_attached(make_logger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = make_logger(level=logging.WARNING)
    with capture_events() as audit_log:
        logger.info("too.early")
        audit_log.attach(AuditLogger(logger), redact=("password",))
        logger.info("course.created", extra={"metadata": {"password": "secret"}})
        audit_log.assert_logged("course.created", times=1, password="[REDACTED]")
        assert len(audit_log.events) == 1
    assert (logger.handlers, logger.level) == ([], logging.WARNING)
    assert list(tmp_path.iterdir()) == []


def test_an_attached_logger_with_a_handler_of_its_own_is_captured_once(
    audit_log, make_trail, make_logger, nowhere
):
    logger = make_logger(level=logging.WARNING)
    audit_log.attach(logger)
    logger.addHandler(make_trail(**nowhere).handler)
    logger.info("course.created")
    audit_log.assert_logged("course.created", times=1)


@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_afterwards_everything_goes_where_it_went_before(make_trail, make_logger, mode):
    trail = make_trail(mode=mode)
    logger = make_logger(trail.handler)
    audit = AuditLogger(logger)
    for log in (logger.info, audit.fire):
        log("before")
        with capture_events() as audit_log:
            log("during")
            log("during.too")
        log("after")
        assert [event.action for event in audit_log.events] == ["during", "during.too"]
    assert trail.flush()
    assert [event.action for event in trail.query().logs] == ["after", "before"] * 2


def test_a_trail_that_starts_meanwhile_works_afterwards(make_trail, make_logger):
    trail = make_trail()
    audit = AuditLogger(make_logger(trail.handler))
    with capture_events():
        audit.fire("during")
        trail.pipeline.start()
        audit.fire("during")
    assert trail.handler.take_call is not None
    audit.fire("after")
    assert trail.flush()
    assert [event.action for event in trail.query().logs] == ["after"]


def test_an_attached_trail_is_gone_afterwards(make_logger):
    with capture_events() as audit_log:
        audit_log.attach(make_logger())
    with pytest.raises(LookupError) as caught:
        get_trail("audit_log")
    assert "audit_log_" not in str(caught.value)  # it lists those that there are


def test_threads_are_captured(audit_log, make_trail, make_logger, nowhere):
    logger = make_logger(make_trail(**nowhere).handler)
    threads = [threading.Thread(target=logger.info, args=("in.thread",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    audit_log.assert_logged("in.thread", times=20)


# ── what is asserted ──


@pytest.fixture
def courses(audit_log, make_trail, make_logger, nowhere):
    audit = AuditLogger(make_logger(make_trail(**nowhere).handler))
    audit.fire(
        "course.created",
        tenant_id="t1",
        actor_id="u1",
        entity_id=7,
        new_values={"title": "Advanced Python", "teacher": {"id": 3, "name": "Ada"}},
        at=datetime(2026, 1, 1, tzinfo=UTC),
        ref=uuid.UUID(int=1),
    )
    audit.fire("course.created", tenant_id="t1", actor_id="u2", outcome="denied")
    audit.fire("user.invited", tenant_id="t2", actor_id="u1")
    return audit_log


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"actor_id": "u1"},
        {"entity_id": 7},
        {"entity_id": "7"},
        {"outcome": None},
        {"created_at": ANY},
        {"new_values": {"title": "Advanced Python"}},
        {"new_values": {"teacher": {"name": "Ada"}}},
        {"at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"ref": uuid.UUID(int=1)},
        {"metadata": {"ref": str(uuid.UUID(int=1))}},
    ],
)
def test_what_was_logged_matches(courses, fields):
    first = courses.assert_logged("course.created", **fields)[0]
    assert first is courses.events[0]


def test_what_was_not_logged_does_not_match(courses):
    for fields in (
        {"actor_id": None},
        {"metadata": {}},  # an empty object is not "any"
        {"outcome": "Denied"},
        {"new_values": {"teacher": {"id": 4}}},
        {"new_values": {"title": None}},
        {"colour": "red"},
    ):
        courses.assert_not_logged("course.created", **fields)


def test_an_action_may_be_a_prefix_or_missing(courses):
    assert len(courses.assert_logged("course.*", times=2)) == 2
    assert len(courses.assert_logged(actor_id="u1", times=2)) == 2
    assert courses.find("none.*") == []


def test_a_pattern_that_is_refused_by_queries_proves_nothing_here_either(courses):
    with pytest.raises(QueryError, match="created"):
        courses.assert_not_logged("*.created")


def test_a_failure_shows_the_nearest_event_and_everything_else(courses):
    shown = refusal(
        courses.assert_logged,
        "course.created",
        actor_id="u1",
        new_values={"title": "Basic Python", "teacher": {"name": "Ada"}, "seats": 12},
    )
    first, *others = shown.splitlines()
    assert first == (
        "no event matches 'course.created', actor_id='u1', "
        "new_values={'title': 'Basic Python', 'teacher': {'name': 'Ada'}, 'seats': 12}"
    )
    assert others == [
        "",
        "nearest is event 1 of 3, 'course.created':",
        "  new_values.title  expected 'Basic Python', was 'Advanced Python'",
        "  new_values.seats  expected 12, was not there",
        "",
        "logged:",
        "  1. 'course.created'  tenant_id='t1'  actor_id='u1'  entity_id='7'",
        "  2. 'course.created'  tenant_id='t1'  actor_id='u2'  outcome='denied'",
        "  3. 'user.invited'  tenant_id='t2'  actor_id='u1'",
    ]


def test_an_action_that_was_not_logged_is_shown_beside_the_one_that_was(courses):
    shown = refusal(courses.assert_logged, "user.removed", tenant_id="t2")
    assert "nearest is event 3 of 3, 'user.invited':" in shown
    assert "  action  expected 'user.removed', was 'user.invited'" in shown


def test_a_wrong_number_is_shown_with_the_nearest_that_is_missing(courses):
    shown = refusal(courses.assert_logged, "course.created", times=2, actor_id="u1")
    assert shown.startswith("1 event instead of 2 match 'course.created', actor_id='u1'")
    assert "  actor_id  expected 'u1', was 'u2'" in shown
    shown = refusal(courses.assert_logged, "course.created", times=1)
    assert shown.startswith("2 events instead of 1 match 'course.created'")
    assert "nearest" not in shown


def test_an_event_that_should_not_be_there_is_shown(courses):
    courses.assert_not_logged("course.created", actor_id="u3")
    shown = refusal(courses.assert_not_logged, "course.created", outcome="denied")
    assert shown.startswith("1 event match 'course.created', outcome='denied'")
    assert "actor_id='u2'" in shown


def test_when_nothing_was_logged_the_failure_says_what_may_be_wrong(courses):
    courses.clear()
    assert courses.events == []
    shown = refusal(courses.assert_logged, "course.created")
    assert shown.splitlines() == [
        "no event matches 'course.created'",
        "",
        "logged: nothing (is there an audit handler, or an audit_log.attach()?)",
    ]


def test_a_long_log_and_long_values_are_cut_in_a_failure(
    audit_log, make_trail, make_logger, nowhere
):
    logger = make_logger(make_trail(**nowhere).handler)
    for number in range(50):
        logger.info("a", extra={"entity_id": str(number), "actor_id": "x" * 1000})
    shown = refusal(audit_log.assert_logged, "b")
    assert "  ... 30 before these\n  31. 'a'" in shown
    assert len(shown) < 6000
