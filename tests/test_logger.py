"""The typed logger, structlog, and the signals of the type checker."""

from __future__ import annotations

import asyncio
import io
import logging
import logging.handlers
import queue
import subprocess
import sys
import threading
import uuid
from contextvars import copy_context
from typing import Literal

import pytest
import structlog

import logbun_logging
from logbun_logging import (
    AuditLogger,
    BatchingAuditHandler,
    audit_context,
    bind_audit_context,
    clear_audit_context,
    get_audit_context,
    get_audit_logger,
)
from logbun_logging.context import CONTEXT_FIELDS
from logbun_logging.structlog import AuditProcessor
from tests.fakes import MemoryAdapter

Actions = Literal["course.created", "course.deleted"]


class Hostile:
    def __eq__(self, other):
        raise RuntimeError("no")

    __hash__ = None

    def __str__(self):
        raise RuntimeError("no")


def events(trail, **query):
    assert trail.flush(20)
    return trail.query(**query).logs[::-1]


def test_a_fired_event_is_stored(make_trail, make_logger):
    trail = make_trail()
    audit = AuditLogger(make_logger(trail.handler))
    audit.fire("course.created", actor_id="u", entity_id="c", new_values={"n": 1}, colour="red")
    (event,) = events(trail)
    assert (event.action, event.actor_id, event.entity_id) == ("course.created", "u", "c")
    assert (event.new_values, event.metadata) == ({"n": 1}, {"colour": "red"})


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        ((), {}),
        ((), {"action": "by keyword"}),
        (("a", "b", 3), {}),
        ((Hostile(),), {}),
        ((None,), {"name": "x", "message": "y", "args": 1, "self": 2, "exc_info": 3}),
        (("a",), {"metadata": Hostile(), "actor_id": Hostile(), "tenant_id": "t"}),
    ],
    ids=range(6),
)
def test_firing_never_raises_and_loses_nothing(make_trail, make_logger, args, fields):
    trail = make_trail()
    AuditLogger(make_logger(trail.handler), actions={"known"}).fire(*args, **fields)
    assert len(events(trail, tenant_id=logbun_logging.ALL_TENANTS)) == 1


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another handler"])
def test_names_that_logging_refuses_are_metadata(make_trail, make_logger, beside):
    trail = make_trail()
    written = io.StringIO()
    others = [logging.StreamHandler(written)] if beside else []
    given = {"name": "n", "message": "m", "args": 1, "msg": "x", "levelname": "y", "exc_info": 3}
    AuditLogger(make_logger(trail.handler, *others)).fire("a", **given)
    (event,) = events(trail)
    assert (event.action, event.metadata) == ("a", given)
    assert written.getvalue() == ("a\n" if beside else "")


def test_misspelt_fields_and_objects_without_a_form_are_reported(make_trail, make_logger):
    happened = {}
    trail = make_trail(on_event=lambda name, details: happened.update({name: details}))
    fire = AuditLogger(make_logger(trail.handler)).fire
    fire("a", tenant="t1", actor="u1", new_values=object())
    trail.shutdown()
    assert happened["unknown_fields"]["names"] == 2, "two names in one call"
    assert "'actor': did you mean 'actor_id'?" in happened["unknown_fields"]["example"]
    assert "pass a dict" in happened["opaque_values"]["example"]


def test_an_unknown_action_is_stored_counted_and_reported(make_trail, make_logger):
    happened = []
    trail = make_trail(on_event=lambda name, details: happened.append(name))
    name = make_logger(trail.handler).name
    audit = get_audit_logger(name, actions=Actions)
    audit.fire("course.created", actor_id="u")
    audit.fire("course.craeted", actor_id="u")
    assert [event.action for event in events(trail)] == ["course.created", "course.craeted"]
    assert trail.stats()["unknown_action"] == 1
    trail.shutdown()
    assert "unknown_action" in happened


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_awaiting_a_call_awaits_its_durability(make_trail, make_logger, fsync):
    trail = make_trail(mode="durable", fsync=fsync)
    audit = AuditLogger(make_logger(trail.handler))

    async def main():
        return await asyncio.gather(
            *(audit.fire_async("a", tenant_id="t", entity_id=str(n)) for n in range(50))
        )

    assert asyncio.run(main()) == [True] * 50
    assert len(events(trail, tenant_id="t")) == 50


def test_awaiting_says_when_it_is_not_durable(make_trail, make_logger, tmp_path):
    trail = make_trail(mode="durable", adapter=MemoryAdapter())
    (tmp_path / "data").write_text("a file where the folder should be")
    audit = AuditLogger(make_logger(trail.handler))
    assert asyncio.run(audit.fire_async("a")) is False
    assert trail.stats()["wal_failures"] == 1


def test_a_level_that_keeps_a_call_back_is_said(make_trail, make_logger):
    audit = AuditLogger(make_logger(make_trail().handler, level=50))
    assert asyncio.run(audit.fire_async("a")) is False


def test_awaiting_says_that_an_event_without_a_tenant_is_refused(make_trail, make_logger):
    trail = make_trail(require_tenant_id=True)
    for handler in (trail.handler, BatchingAuditHandler(trail=trail)):
        audit = AuditLogger(make_logger(handler))
        assert asyncio.run(audit.fire_async("a")) is False
        assert asyncio.run(audit.fire_async("a", tenant_id="t")) is True
        with audit_context(tenant_id="t"):
            assert asyncio.run(audit.fire_async("a")) is True
    assert len(events(trail, tenant_id="t")) == 4
    assert trail.stats()["refused"] == 2


def test_awaiting_says_that_nobody_has_taken_the_event(make_trail, make_logger):
    assert asyncio.run(AuditLogger(make_logger()).fire_async("a")) is False
    trail = make_trail()
    trail.handler.addFilter(lambda record: False)
    assert asyncio.run(AuditLogger(make_logger(trail.handler)).fire_async("a")) is False


# ── forgotten wiring ──


def told_of(caplog, log):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "logbun_logging" and repr(log.name) in record.getMessage()
    ]


def test_a_logger_without_an_audit_handler_is_told_of_once(make_trail, make_logger, caplog):
    for handlers in ((), (logging.NullHandler(),)):
        log = make_logger(*handlers)
        for _ in range(3):
            AuditLogger(log).fire("a")
        (said,) = told_of(caplog, log)
        assert "no audit handler is reached from it: give it" in said
    quiet = make_logger(level=logging.WARNING)
    AuditLogger(quiet).fire("a")
    (said,) = told_of(caplog, quiet)
    assert "Set its level to INFO" in said
    assert "give it, or a logger above it, an AuditQueueHandler" in said, "it wants both"
    trail = make_trail()
    trail.handler.setLevel(logging.ERROR)
    log = make_logger(trail.handler)
    AuditLogger(log).fire("a")
    assert len(told_of(caplog, log)) == 1


def test_a_level_that_hides_events_is_told_of_once(make_trail, make_logger, caplog):
    log = make_logger(make_trail().handler, level=logging.WARNING)
    logging.getLogger("logbun_logging").disabled = True  # as by a dictConfig that forgets it
    for _ in range(3):
        AuditLogger(log).fire("a")
    (said,) = told_of(caplog, log)
    assert "are not stored: its level is WARNING. Set its level to INFO" in said
    assert "AuditQueueHandler" not in said, "it has one"
    disabled = make_logger(make_trail(namespace="other").handler)
    disabled.disabled = True
    AuditLogger(disabled).fire("a")
    (said,) = told_of(caplog, disabled)
    assert "it is disabled" in said


def test_what_may_lead_to_an_audit_handler_is_not_told_of(make_trail, make_logger, caplog):
    trail = make_trail()
    behind = logging.handlers.MemoryHandler(10, target=trail.handler)
    filtered = make_logger(trail.handler)
    filtered.addFilter(lambda record: False)
    for log in (make_logger(trail.handler), make_logger(behind), filtered):
        AuditLogger(log).fire("a")
        assert told_of(caplog, log) == []


GOOD = """
from typing import Literal, Unpack
from uuid import UUID
from logbun_logging import AuditFields, AuditLogger, get_audit_logger
Actions = Literal["course.created", "course.deleted"]
audit: AuditLogger[Actions] = get_audit_logger("audit")
audit.fire("course.created", actor_id="u", anything=1)
async def f() -> bool:
    return await audit.fire_async("course.deleted")
def log(action: Actions, **fields: Unpack[AuditFields]) -> None:
    audit.fire(action, **fields)
"""


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", None),
        ('audit.fire("course.craeted")', "arg-type"),
        ("audit.fire()", "call-arg"),
        ('audit.fire("course.created", actor_id=5, entity_id=UUID(int=1))', None),
        ('audit.fire("course.created", actor_id=[5])', "arg-type"),
        ('log("course.created", entity_id=7)', None),
        ('log("course.created", entity_di=7)', "call-arg"),
        ('log("course.created", metadata=7)', "arg-type"),
        ('audit.fire("course.created", metadata=[1])', "arg-type"),
    ],
)
def test_the_type_checker_finds_a_wrong_call(tmp_path, line, error):
    sample = tmp_path / "sample.py"
    sample.write_text(GOOD + line + "\n")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(sample)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (f"[{error}]" in found.stdout) if error else (found.returncode == 0), found.stdout


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_type_checker_knows_every_name_on_every_python(tmp_path, version):
    sample = tmp_path / "sample.py"
    sample.write_text(
        "from logbun_logging import AuditQueueHandler\n"
        "reveal_type(AuditQueueHandler)\n"
        "from logbun_logging import AuditLoger\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", version]
    found = subprocess.run(
        [*command, "--cache-dir", str(tmp_path), str(sample)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'has no attribute "AuditLoger"' in found.stdout
    assert "def (queue: Any =, *, trail:" in found.stdout


# ── context ──


def test_context_nests_and_ends():
    clear_audit_context()
    with audit_context(tenant_id="t1", actor_id="a"):
        with audit_context(tenant_id="t2", ip_address=None):
            assert get_audit_context() == {"tenant_id": "t2", "actor_id": "a"}
        assert get_audit_context()["tenant_id"] == "t1"
        bind_audit_context(actor_id=None)
        assert get_audit_context() == {"tenant_id": "t1"}
    assert get_audit_context() == {}


def test_a_misspelt_field_is_an_error():
    with pytest.raises(TypeError, match="tenant"):
        bind_audit_context(tenant="t")


@pytest.mark.parametrize("field", sorted(CONTEXT_FIELDS))
def test_a_context_takes_values_of_any_type_as_text(make_trail, make_logger, field):
    trail = make_trail()
    log = make_logger(trail.handler)
    with audit_context(**{field: uuid.UUID(int=7)}):
        log.info("a", extra={"colour": "red"})
    with audit_context(**{field: 7}):
        log.info("b")
    found = events(trail, tenant_id=logbun_logging.ALL_TENANTS)
    assert [getattr(event, field) for event in found] == [str(uuid.UUID(int=7)), "7"]


@pytest.mark.parametrize("in_front", ["queue", "memory"])
def test_a_filter_takes_the_context_through_other_people_s_handlers(
    make_trail, make_logger, in_front
):
    trail = make_trail()
    audit_handler = BatchingAuditHandler(trail=trail)
    if in_front == "queue":
        carried = queue.Queue()
        handler = logging.handlers.QueueHandler(carried)
        listener = logging.handlers.QueueListener(carried, audit_handler)
    else:
        handler = logging.handlers.MemoryHandler(100, target=audit_handler)
    handler.addFilter(logbun_logging.AuditContextFilter())
    log = make_logger(handler)
    with audit_context(tenant_id="t", actor_id=uuid.UUID(int=7), ip_address="203.0.113.9"):
        log.info("course.%s", "created")
        log.info("a", extra={"actor_id": "u"})
        AuditLogger(log).fire("fired", entity_id="c")
    if in_front == "queue":
        listener.start()
        listener.stop()
    handler.close()
    created, own, fired = events(trail, tenant_id="t")
    assert (created.action, created.actor_id) == ("course.created", str(uuid.UUID(int=7)))
    assert (own.action, own.actor_id) == ("a", "u")
    assert (fired.action, fired.entity_id, fired.actor_id) == ("fired", "c", created.actor_id)
    for event in (created, own, fired):
        assert event.ip_address == "203.0.113.9"
        assert event.metadata is None


def test_context_is_the_task_s_own(make_trail, make_logger):
    trail = make_trail()
    audit = AuditLogger(make_logger(trail.handler))

    async def request(number):
        with audit_context(tenant_id=f"t{number}", actor_id=f"u{number}"):
            await asyncio.sleep(0)
            audit.fire("a", entity_id=str(number))
            await asyncio.to_thread(audit.fire, "b", entity_id=str(number))
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(
                None, copy_context().run, lambda: audit.fire("c", entity_id=str(number))
            )

    async def main():
        await asyncio.gather(*(request(number) for number in range(50)))

    asyncio.run(main())
    found = events(trail, tenant_id=logbun_logging.ALL_TENANTS, limit=1000)
    assert len(found) == 150
    assert all(e.tenant_id == f"t{e.entity_id}" and e.actor_id == f"u{e.entity_id}" for e in found)


def test_a_thread_does_not_see_another_s_context():
    seen = []
    with audit_context(tenant_id="t"):
        thread = threading.Thread(target=lambda: seen.append(dict(get_audit_context())))
        thread.start()
        thread.join()
    assert seen == [{}]


# ── structlog ──


@pytest.fixture
def configure_structlog():
    yield structlog.configure
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def through_stdlib(configure, trail, make_logger):
    log = make_logger(trail.handler)
    configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            AuditProcessor(),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger(log.name)


def without_stdlib(configure, trail, make_logger):
    configure(
        processors=[structlog.contextvars.merge_contextvars, AuditProcessor(trail)],
        logger_factory=structlog.PrintLoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(20),
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger()


@pytest.mark.parametrize("way", [through_stdlib, without_stdlib])
def test_structlog_makes_the_same_events_either_way(
    make_trail, make_logger, configure_structlog, way
):
    trail = make_trail()
    log = way(configure_structlog, trail, make_logger)
    structlog.contextvars.bind_contextvars(request_id="r1")
    with audit_context(ip_address="203.0.113.9"):
        log.bind(actor_id="u", tenant_id="t").info(
            "course.created", entity_id="c", new_values={"n": 1}, colour="red", name="n"
        )
    try:
        raise ValueError("broken")
    except ValueError:
        log.bind(tenant_id="t").exception("failed")
    created, failed = events(trail, tenant_id="t")
    assert (created.action, created.actor_id, created.entity_id) == ("course.created", "u", "c")
    assert (created.request_id, created.ip_address) == ("r1", "203.0.113.9")
    assert created.new_values == {"n": 1}
    assert created.metadata == {"colour": "red", "name_": "n"}
    assert "ValueError: broken" in failed.metadata["exc_info"]


@pytest.mark.parametrize("way", [through_stdlib, without_stdlib])
def test_structlog_s_arguments_are_formatted_into_the_action(
    make_trail, make_logger, configure_structlog, way
):
    trail = make_trail()
    way(configure_structlog, trail, make_logger)
    processors = structlog.get_config()["processors"]
    log = structlog.stdlib.BoundLogger(make_logger(trail.handler), processors, {"tenant_id": "t"})
    log.info("course.%s", "moved", actor_id="u")
    log.info("%(what)s.moved", {"what": "user"})
    log.info("100%", "one too many")
    log.info("plain 100%", positional_args="mine")
    found = events(trail, tenant_id="t")
    assert [e.action for e in found] == ["course.moved", "user.moved", "100%", "plain 100%"]
    assert found[0].metadata is None
    assert found[3].metadata == {"positional_args": "mine"}


def test_importing_the_package_loads_no_driver_and_no_event_loop():
    code = (
        "import sys; before = set(sys.modules);"  # a coverage tool has its own
        "import logbun_logging; from logbun_logging.adapters import create_adapter;"
        "print([m for m in ('sqlite_utils', 'sqlite3', 'asyncio', 'libsql_client', 'structlog',"
        " 'clickhouse_connect', 'chdb') if m in sys.modules.keys() - before])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
