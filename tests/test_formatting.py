"""What other handlers write of audit events."""

from __future__ import annotations

import io
import json
import logging
import logging.config

import msgspec
import pytest
import structlog

from logbun_logging import AuditFormatter, AuditLogger, ConfigurationError, audit_context
from logbun_logging.structlog import AuditProcessor

GIVEN = {"new_values": {"password": "hunter2", "ssn": "123", "title": "x"}, "colour": "red"}


@pytest.fixture
def beside(make_trail, make_logger):
    """A logger with a trail and a stream with an AuditFormatter, in this order or the other."""

    def make(*, trail_first=True, redact=("ssn",), **formatter):
        trail = make_trail(redact=redact)
        stream = logging.StreamHandler(io.StringIO())
        stream.setFormatter(AuditFormatter(**formatter))
        handlers = [trail.handler, stream] if trail_first else [stream, trail.handler]
        return trail, make_logger(*handlers), stream.stream

    return make


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def row(trail, **query):
    assert trail.flush(20)
    (event,) = trail.query(**query).logs
    return msgspec.to_builtins(msgspec.structs.asdict(event))


@pytest.mark.parametrize("trail_first", [True, False])
def test_a_plain_record_is_written_as_the_row_has_it(beside, trail_first):
    trail, logger, stream = beside(trail="test", trail_first=trail_first)
    with audit_context(tenant_id="t1", actor_id="u1"):
        logger.info("course.%s", "created", extra=GIVEN)
    (written,) = lines(stream)
    stored = row(trail, tenant_id="t1")
    assert written.pop("id")
    assert stored.pop("id")
    assert written == stored
    assert written["new_values"] == {"password": "[REDACTED]", "ssn": "[REDACTED]", "title": "x"}


def test_a_typed_call_is_written_with_the_id_of_the_row(beside):
    trail, logger, stream = beside(trail="test")
    AuditLogger(logger).fire("a", tenant_id="t1", **GIVEN)
    assert lines(stream)[0]["id"] == row(trail, tenant_id="t1")["id"]


def test_structlog_is_written_as_the_row_has_it(beside):
    trail, logger, stream = beside(trail="test")
    log = structlog.wrap_logger(
        logger, processors=[AuditProcessor()], wrapper_class=structlog.stdlib.BoundLogger
    )
    log.bind(tenant_id="t1").info("a", **GIVEN)
    stored = row(trail, tenant_id="t1")
    assert lines(stream)[0]["new_values"] == stored["new_values"]
    assert lines(stream)[0]["metadata"] == stored["metadata"] == {"colour": "red"}


def test_secrets_are_redacted_where_no_trail_is_named(make_logger):
    stream = logging.StreamHandler(io.StringIO())
    stream.setFormatter(AuditFormatter(limits={"max_string_bytes": 256}))
    logger = make_logger(stream)
    logger.info("a", extra={**GIVEN, "long": "x" * 1000})
    (written,) = lines(stream.stream)
    assert written["new_values"] == {"password": "[REDACTED]", "ssn": "123", "title": "x"}
    assert len(written["metadata"]["long"]) <= 256


def test_rules_of_the_formatter_apply_to_what_a_trail_has_taken(beside):
    trail, logger, stream = beside(redact=[], trail=None)
    logger.handlers[1].setFormatter(AuditFormatter(redact=["title"]))
    with audit_context(tenant_id="t\0"):
        AuditLogger(logger).fire("a", **GIVEN)
    stored = row(trail, tenant_id="t\0")
    (written,) = lines(stream)
    assert stored["new_values"] == GIVEN["new_values"]
    assert written["new_values"] == {"password": "[REDACTED]", "ssn": "123", "title": "[REDACTED]"}
    for name in ("id", "created_at", "tenant_id"):
        assert written[name] == stored[name]


@pytest.mark.parametrize("formatter", [{}, {"trail": "strict"}])
def test_the_rules_of_the_formatter_are_not_those_of_the_trail_that_came_first(
    beside, make_trail, tmp_path, formatter
):
    make_trail(namespace="strict", adapter=f"sqlite:///{tmp_path}/strict.db")
    _, logger, stream = beside(redact=[], **formatter)
    AuditLogger(logger).fire("a", tenant_id="t1", **GIVEN)
    assert lines(stream)[0]["new_values"]["password"] == "[REDACTED]"


def test_a_typed_call_beyond_the_limits_is_written_as_the_row_has_it(beside):
    trail, logger, stream = beside(trail="test")
    deep = {}
    for _ in range(40):
        deep = {"k": deep, "items": [1, "é" * 3000, {"token": "x"}]}
    for values in (deep, {f"k{n}": "v" * 999 for n in range(300)}, {"v": list(range(50_000))}):
        AuditLogger(logger).fire("a" * 9000, tenant_id="t1", metadata=values, new_values=deep)
    assert trail.flush(20)
    stored = [
        msgspec.to_builtins(msgspec.structs.asdict(event)) for event in trail.iter(tenant_id="t1")
    ]
    assert lines(stream) == stored[::-1]


def test_it_is_configured_by_dictconfig_before_its_trail(tmp_path, capsys):
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"audit": {"()": "logbun_logging.AuditFormatter", "trail": "formatted"}},
            "handlers": {
                "file": {
                    "class": "logging.FileHandler",
                    "filename": str(tmp_path / "audit.ndjson"),
                    "formatter": "audit",
                },
                "trail": {
                    "class": "logbun_logging.BatchingAuditHandler",
                    "namespace": "formatted",
                    "data_dir": str(tmp_path),
                    "adapter": f"sqlite:///{tmp_path}/a.db",
                    "redact": ["ssn"],
                },
            },
            "loggers": {"test.formatted": {"level": "INFO", "handlers": ["file", "trail"]}},
        }
    )
    logger = logging.getLogger("test.formatted")
    try:
        logger.info("a", extra=GIVEN)
    finally:
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
    text = (tmp_path / "audit.ndjson").read_text()
    assert "hunter2" not in text
    assert json.loads(text)["new_values"]["ssn"] == "[REDACTED]"
    assert capsys.readouterr().err == ""


def test_nothing_is_written_while_the_rules_are_not_known():
    with pytest.raises(LookupError, match="no audit trail for namespace 'none-such'"):
        AuditFormatter("none-such").format(logging.makeLogRecord(GIVEN))


def test_wrong_options_are_refused():
    with pytest.raises(ConfigurationError, match=r"redact.*absent with a trail"):
        AuditFormatter("test", redact=["x"])
    with pytest.raises(ConfigurationError, match="max_string_bytes=1"):
        AuditFormatter(limits={"max_string_bytes": 1})
