"""The context's way to Celery tasks, by real workers with a broker of files."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.signals import before_task_publish, task_postrun, task_prerun, worker_process_shutdown

from logbun_logging import AuditLogger, audit_context, bind_audit_context, get_audit_context
from logbun_logging.celery import HEADER, celery_signals
from tests.fakes import wait_until
from tests.servers import rows, running, wait_for_rows

BOUND = {
    "tenant_id": "t1",
    "actor_id": "ann",
    "request_id": "r1",
    "ip_address": "203.0.113.9",
    "user_agent": "test/1",
}
FIELDS = ("tenant_id", "actor_id", "entity_id", "outcome", "request_id", "ip_address", "user_agent")
NOBODY = {"actor_id": "unknown"}


def context():
    return dict(get_audit_context())


def by_action(found):
    """Return the context of each row under its action."""
    return {
        row["action"]: {name: row[name] for name in FIELDS if row[name] is not None}
        for row in found
    }


@pytest.fixture
def signals():
    """Connect the signals for one test."""
    celery_signals()
    yield
    for signal_ in (before_task_publish, task_prerun, task_postrun, worker_process_shutdown):
        assert signal_.disconnect(dispatch_uid=HEADER)
        assert not signal_.disconnect(dispatch_uid=HEADER), "connected once"


@pytest.fixture
def app(signals):
    """An application whose messages stay in the memory of this process."""
    app = Celery("test", broker=f"memory://{os.urandom(4).hex()}", set_as_current=False)
    with app.connection_for_write() as connection:
        app.purged = lambda: connection.default_channel.queue_purge("celery")
        app.message = lambda: connection.default_channel.basic_get("celery", no_ack=True)
        yield app
    app.close()


# -- sending -----------------------------------------------------------------------------------


def sent(app, **options):
    """Send a task; return the headers of its message."""
    app.send_task("anything", **options)
    return app.message().headers


def test_a_message_carries_the_context_fields_and_nothing_else(app):
    bare = sent(app)
    with audit_context(**BOUND):
        headers = sent(app)

    assert headers.keys() - bare.keys() == {HEADER}
    assert headers[HEADER] == BOUND


def test_a_message_sent_without_context_has_no_header(app):
    assert HEADER not in sent(app)


@pytest.mark.parametrize(
    "tenant_id",
    ["t\0", "t\u2400", "a" * 3000, "a" * 2999 + "b", "t\u2026[sha256:" + "0" * 32 + "]"],
)
def test_a_task_logs_for_the_tenant_that_has_sent_it_whatever_its_id(
    app, make_trail, make_logger, tenant_id
):
    @app.task
    def task():
        audit.fire("run")

    trail = make_trail()
    audit = AuditLogger(make_logger(trail.handler))
    with audit_context(tenant_id=tenant_id):
        audit.fire("sent")
        header = sent(app)[HEADER]
    tracer = build_tracer(task.name, task, app=app, eager=True, propagate=True)
    tracer("1", (), {}, {"id": "1", HEADER: header, "is_eager": False})

    assert trail.flush(20)
    assert {event.action for event in trail.query(tenant_id=tenant_id).logs} == {"sent", "run"}


@pytest.mark.parametrize("tenant_id", ["t\ud800", "a" * 20_000])
def test_a_tenant_that_a_message_cannot_carry_is_left_out_and_not_changed(app, tenant_id):
    with audit_context(tenant_id=tenant_id, actor_id="ann"):
        assert sent(app)[HEADER] == {"actor_id": "ann"}


def test_a_header_given_by_hand_is_replaced(app):
    with audit_context(tenant_id="t1"):
        assert sent(app, headers={HEADER: {"tenant_id": "t2"}, "x": "y"})[HEADER] == {
            "tenant_id": "t1"
        }
    assert HEADER not in sent(app, headers={HEADER: {"tenant_id": "t2"}})


class Actor:
    """As Django's middleware binds one."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


@pytest.mark.parametrize(
    ("bound", "carried"),
    [
        ({"actor_id": Actor("42")}, {"actor_id": "42"}),
        ({"actor_id": Actor(None)}, {"actor_id": "<unprintable Actor>"}),
        ({"actor_id": 42}, {"actor_id": "42"}),
        ({"actor_id": Actor("unknown")}, None),
        ({"user_agent": "a\ud800\0b"}, {"user_agent": "a\ufffd\u2400b"}),
    ],
)
def test_what_is_no_text_travels_as_text(app, bound, carried):
    with audit_context(**bound):
        assert sent(app).get(HEADER) == carried


def test_a_long_value_is_cut(app):
    with audit_context(user_agent="é" * 100_000):
        assert len(sent(app)[HEADER]["user_agent"].encode()) <= 2048


# -- running in place --------------------------------------------------------------------------


def test_an_eager_task_has_its_callers_context_and_leaves_it_as_it_was(app):
    @app.task
    def inner():
        seen.append(context())
        bind_audit_context(actor_id="eve", outcome="left behind")

    @app.task
    def outer():
        inner.apply()
        seen.append(context())
        bind_audit_context(tenant_id="t2")
        inner.delay()

    @app.task
    def fails():
        bind_audit_context(actor_id="eve")
        raise ZeroDivisionError

    seen = []
    app.conf.task_always_eager = True
    with audit_context(**BOUND):
        outer.delay()
        assert fails.delay().failed()
        assert context() == BOUND

    assert seen == [BOUND, BOUND, {**BOUND, "tenant_id": "t2"}]
    assert context() == {}


def test_an_eager_retry_has_its_callers_context(app):
    @app.task(bind=True, default_retry_delay=0)
    def again(self):
        seen.append(context())
        bind_audit_context(outcome="left behind")
        if self.request.retries < 2:
            raise self.retry()

    seen = []
    with audit_context(**BOUND):
        assert again.apply().successful()
        assert context() == BOUND

    assert seen == [BOUND] * 3


# -- what a header may hold --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "bound"),
    [
        (None, {}),
        ("tenant_id", {}),
        (["tenant_id"], {}),
        (42, {}),
        ({}, {}),
        ({"tenant_id": "t1", "password": "x", "": "y", "action": "z"}, {"tenant_id": "t1"}),
        ({"tenant_id": 1, "actor_id": None, "outcome": ["x"], "entity_id": ""}, {}),
        ({1: "x", "actor_id": "ann"}, {"actor_id": "ann"}),
    ],
)
def test_a_foreign_header_never_breaks_a_task_nor_leaves_the_old_context(app, header, bound):
    @app.task
    def task():
        return context()

    # As a worker calls it: the message's headers are the request.
    request = {"id": "1", HEADER: header, "is_eager": False}
    with audit_context(**BOUND):
        tracer = build_tracer(task.name, task, app=app, eager=True, propagate=True)
        result = tracer("1", (), {}, request).retval
        assert context() == BOUND

    assert result == bound


def test_signals_connected_in_the_middle_of_a_task_do_no_harm(signals):
    with audit_context(**BOUND):
        task_postrun.send(sender=None)
        assert context() == BOUND


# -- real workers ------------------------------------------------------------------------------


@contextmanager
def worker(folder, *options, **environment):
    """Run a worker of the tasks in celery_tasks.py; it ends by a warm shutdown."""
    command = ["-m", "celery", "--app", "tests.celery_tasks", "worker", "--without-gossip"]
    command += ["--without-mingle", "--without-heartbeat", "--loglevel", "WARNING", *options]
    with running(command, folder, FOLDER=str(folder), **environment) as process:
        yield process


@pytest.fixture
def send(tmp_path, signals):
    """Return a function that sends tasks, with their context, from this process."""
    broker = tmp_path / "broker"
    broker.mkdir()
    app = Celery("test", broker="filesystem://", set_as_current=False)
    app.conf.broker_transport_options = dict.fromkeys(
        ("data_folder_in", "data_folder_out", "control_folder"), str(broker)
    )
    with app.connection_for_write() as connection:

        def send(name, *args, **options):
            app.send_task(f"tests.celery_tasks.{name}", args, connection=connection, **options)

        send.signature = app.signature
        yield send
    app.close()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_tasks_have_the_context_of_whoever_sent_them(pool, tmp_path, send):
    with worker(tmp_path, "--concurrency", "1", "--pool", pool, FLUSH_INTERVAL="0.05"):
        with audit_context(**BOUND):
            send("plain", "in context")
            send("forgetful")
            send("failing")
            send("retrying")
            send("sending")
            last = send.signature("tests.celery_tasks.plain", ["last of a chain"], immutable=True)
            send("plain", "first of a chain", chain=[last])
        send("plain", "without context")
        found = wait_for_rows(tmp_path / "audit.db", 13)

    assert len(found) == 13
    retries = [row["entity_id"] for row in found if row["action"] == "retrying"]
    assert retries == ["0", "1", "2"]
    left = {"entity_id": "left behind"}
    assert by_action(found) == {
        "in context": BOUND,
        "forgetful": {**BOUND, **left, "outcome": "left behind"},
        "failing": {**BOUND, **left},
        "retrying": {**BOUND, "entity_id": "2"},
        "sending": {**BOUND, "actor_id": "bob"},
        "in place": {**BOUND, "actor_id": "eve"},
        "sent": BOUND,
        "sent by bob": {**BOUND, "actor_id": "bob"},
        "first of a chain": BOUND,
        "last of a chain": BOUND,
        "without context": NOBODY,
    }


def messages(broker):
    """Yield what was sent, but not what is being written just now."""
    for path in broker.glob("*.msg"):
        with suppress(json.JSONDecodeError):
            yield json.loads(path.read_bytes())


def test_beat_sends_tasks_without_context(tmp_path):
    beat = ["-m", "celery", "--app", "tests.celery_tasks", "beat", "--max-interval", "1"]
    with running([*beat, "--pidfile="], tmp_path, FOLDER=str(tmp_path)):
        assert wait_until(lambda: any(messages(tmp_path / "broker")), 30)

    message = next(messages(tmp_path / "broker"))
    assert message["headers"]["task"] == "tests.celery_tasks.plain"
    assert HEADER not in message["headers"]


@pytest.mark.parametrize(
    ("pool", "mode"), [("prefork", "durable"), ("prefork", "volatile"), ("solo", "volatile")]
)
def test_a_warm_shutdown_delivers_everything(pool, mode, tmp_path, send):
    done = tmp_path / "done"
    with worker(tmp_path, "--concurrency", "3", "--pool", pool, MODE=mode):
        for number in range(20):
            with audit_context(entity_id=str(number)):
                send("plain")
        send("touch", str(done))
        assert wait_until(lambda: done.exists() and not any((tmp_path / "broker").glob("*.msg")))

    assert sorted(int(row["entity_id"]) for row in rows(tmp_path / "audit.db")) == [*range(20)]


def test_a_worker_process_that_is_recycled_delivers_everything(tmp_path, send):
    with worker(tmp_path, "--concurrency", "1", "--max-tasks-per-child", "2", MODE="volatile"):
        for _ in range(4):
            send("plain")
        wait_for_rows(tmp_path / "audit.db", 4)  # while the worker goes on


def test_what_a_killed_worker_process_has_audited_is_delivered_by_another(tmp_path, send):
    def found():
        return wait_for_rows(tmp_path / "audit.db", 0)

    with worker(tmp_path, "--concurrency", "2", FLUSH_INTERVAL="1"):
        with audit_context(**BOUND):
            send("killed")
        for _ in range(30):  # Celery may give a task to the dying process, and lose it
            send("plain")
            if wait_until(lambda: "killed" in by_action(found()), 2):
                break

    left = wait_for_rows(tmp_path / "audit.db", 1)  # found() has none while it cannot be read
    assert [row["action"] for row in left].count("killed") == 1
    assert by_action(left)["killed"] == BOUND
