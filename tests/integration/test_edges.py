"""The less travelled ways: each is somebody's everyday."""

from __future__ import annotations

import asyncio
import os

import pytest

import logbun_logging
from logbun_logging import AuditLogger, AuditTrail, BatchingAuditHandler, ConfigurationError
from logbun_logging._storage.files import open_locked, write_atomically
from logbun_logging.adapters.sqlite.adapter import SQLiteAdapter
from logbun_logging.context import bind_audit_context, reset_audit_context
from logbun_logging.event import Entry
from logbun_logging.options import BatchingOptions
from logbun_logging.signals import shutdown_on_signals
from tests.encoding.test_values import encode
from tests.fakes import MemoryAdapter

TEXT = ["actor_id", "tenant_id", "entity_type", "entity_id", "outcome", "request_id"]
TEXT += ["ip_address", "user_agent"]


@pytest.mark.parametrize("action", ["a", "a\0"])
def test_every_text_field_takes_numbers(action):
    event = encode(action=action, **dict.fromkeys(TEXT, 7))
    assert [getattr(event, name) for name in TEXT] == ["7"] * len(TEXT)


@pytest.mark.parametrize(
    "options",
    [
        {"retention": {"cron": 5}},
        {"retention": {"tenants": 5}},
        {"redact": 5},
        {"redact": [5]},
        {"tenancy": {"resolve_connection": str}},
        {"tenancy": {"resolve_connection": 5}},
        {"tenancy": {"mode": "database_per_tenant", "resolve_connection": str}},
        {
            "tenancy": {"mode": "database_per_tenant", "resolve_connection": str},
            "adapter": None,
            "require_tenant_id": False,
        },
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options):
    given = {"namespace": "test", "adapter": f"sqlite:///{tmp_path}/a.db", **options}
    with pytest.raises(ConfigurationError):
        AuditTrail(**given)


def test_options_may_be_objects(make_trail):
    trail = make_trail(batching=BatchingOptions(max_size=3), redact=[])
    assert trail.options.batching.max_size == 3
    assert repr(trail) == "AuditTrail(namespace='test', mode='volatile')"


def test_flushing_and_closing_the_handlers_is_flushing_and_closing_the_trail(
    make_trail, make_logger
):
    trail = make_trail()
    handler = BatchingAuditHandler(trail=trail)
    log = make_logger(handler, trail.handler)
    log.info("a")
    handler.flush()
    trail.handler.flush()
    assert trail.stats()["inserted"] == 2
    log.removeHandler(handler)
    handler.close()
    trail.handler.close()
    assert trail.pipeline.closing


def test_an_adapter_that_says_false_has_not_stored(make_trail, make_logger):
    class Refusing(MemoryAdapter):
        def bulk_insert(self, tenant_id, events):
            return False

    trail = make_trail(adapter=Refusing(), retry={"max_retries": 1, "base_delay": 0.0})
    AuditLogger(make_logger(trail.handler)).fire("a")
    assert trail.flush(20)
    assert trail.stats()["dead_lettered"] == 1
    assert "returned False" in trail.dlq.list()[0].envelope.reason


def test_a_payload_that_is_no_event_is_set_aside_alone(make_trail, make_logger, tmp_path):
    adapter = MemoryAdapter()
    trail = make_trail(adapter=adapter, mode="durable")
    audit = AuditLogger(make_logger(trail.handler))
    for number in range(5):
        audit.fire("good", entity_id=str(number))
        bad = Entry(None, b'{"id":"%d","entity_id":5}' % number)
        if trail.pipeline.submit(bad).queue:
            trail.pipeline.buffer([bad])
    assert trail.flush(20)
    assert trail.stats()["dead_lettered"] == 5
    assert sorted(event.entity_id for event in adapter.events.values()) == list("01234")
    assert trail.run_maintenance()
    assert trail.dlq.list() == []
    assert [
        line.count(b"entity_id")
        for path in tmp_path.rglob("*.corrupt")
        for line in path.read_bytes().splitlines()
    ] == [1] * 5


def test_a_file_that_is_no_database_is_an_outage_and_no_fault_of_the_rows(tmp_path):
    (tmp_path / "a.db").write_text("no database" * 1000)
    with pytest.raises(logbun_logging.AdapterUnavailableError, match="not a database"):
        SQLiteAdapter(tmp_path / "a.db").init()


def test_an_adapter_that_nobody_would_await_is_refused(tmp_path):
    class Awaited(MemoryAdapter):
        async def bulk_insert(self, tenant_id, events):
            return super().bulk_insert(tenant_id, events)

        async def exists(self):
            return True

    with pytest.raises(ConfigurationError, match="bulk_insert, exists must not be async"):
        AuditTrail(namespace="awaited", data_dir=tmp_path, adapter=Awaited())


def test_an_adapter_that_is_not_open_says_so(tmp_path):
    adapter = SQLiteAdapter(tmp_path / "a.db")
    with pytest.raises(logbun_logging.AdapterUnavailableError, match="not open"):
        adapter.bulk_insert("t", [])
    with pytest.raises(ConfigurationError, match="busy_timeout"):
        SQLiteAdapter(tmp_path / "a.db", busy_timeout="5")


def test_a_token_of_another_context_clears():
    from contextvars import copy_context

    token = copy_context().run(bind_audit_context, tenant_id="t")
    reset_audit_context(token)
    assert logbun_logging.get_audit_context() == {}


def test_a_file_that_cannot_be_renamed_leaves_nothing(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(target, [b"x"])
    assert os.listdir(tmp_path) == ["folder"]
    assert open_locked(tmp_path / "none") is None


def test_signals_that_somebody_handles_are_left_alone(monkeypatch):
    import signal

    installed = {}
    monkeypatch.setattr(signal, "getsignal", {1: signal.SIG_DFL, 15: signal.SIG_IGN}.get)
    monkeypatch.setattr(signal, "signal", installed.__setitem__)
    shutdown_on_signals([signal.SIGHUP, signal.SIGTERM])
    assert list(installed) == [signal.SIGHUP]
    with pytest.raises(SystemExit) as ended:
        installed[signal.SIGHUP](1, None)
    assert ended.value.code == 129


def test_what_a_subclass_overrides_is_called(make_trail, make_logger, tmp_path):
    seen = []

    class Counting(SQLiteAdapter):
        def bulk_insert(self, tenant_id, events):
            seen.extend(event.action for event in events)
            return super().bulk_insert(tenant_id, events)

    trail = make_trail(adapter=Counting(tmp_path / "a.db"))
    AuditLogger(make_logger(trail.handler)).fire("a", tenant_id="t")
    assert trail.flush(20)
    assert seen == ["a"]
    assert [event.action for event in trail.query(tenant_id="t").logs] == ["a"]


def test_a_handler_that_handles_in_its_own_way_sees_typed_calls_too(make_trail, make_logger):
    class Skipping(logbun_logging.AuditQueueHandler):
        def handle(self, record):
            return super().handle(record) if record.msg != "skip" else False

    trail = make_trail()
    audit = AuditLogger(make_logger(Skipping(trail=trail)))
    audit.fire("keep")
    audit.fire("skip")
    assert trail.flush(20)
    assert [event.action for event in trail.query().logs] == ["keep"]


def test_a_value_that_cannot_be_compared_costs_no_other(make_trail, make_logger):
    class Hostile:
        def __eq__(self, other):
            raise ValueError(self)

        __hash__ = None

        def __str__(self):
            raise ValueError

    trail = make_trail()
    AuditLogger(make_logger(trail.handler)).fire(
        "a", actor_id=Hostile(), tenant_id="t", new_values={"x": 1}
    )
    assert trail.flush(20)
    (event,) = trail.query(tenant_id="t").logs
    assert event.new_values == {"x": 1}


def test_a_call_after_the_end_is_not_said_to_be_safe(make_trail, make_logger):
    trail = make_trail(mode="durable", fsync="always")
    audit = AuditLogger(make_logger(trail.handler))
    trail.shutdown()
    assert asyncio.run(audit.fire_async("a")) is False
