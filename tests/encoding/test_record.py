"""The audit record is a complete log record, made on demand."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

from logbun_logging._encoding.record import AuditRecord
from logbun_logging.event import AuditEvent, Entry, encode_event

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s %(process)d %(threadName)s %(actor_id)s"


def test_a_formatter_finds_everything():
    record = AuditRecord("audit", logging.INFO, "a", {"actor_id": "u"}, created=1.5)
    text = logging.Formatter(FORMAT).format(record)
    assert " INFO audit a " in text
    assert text.endswith(" u")
    assert record.msecs == 500
    assert record.levelname == "INFO"
    assert record.getMessage() == "a"


def test_attributes_are_the_fields_and_nothing_else():
    record = AuditRecord("audit", logging.INFO, "a", {"actor_id": "u"})
    assert record.actor_id == "u"
    for name in ("nothing", "__nothing__"):
        assert not hasattr(record, name)
    assert not hasattr(AuditRecord("audit", logging.INFO, "a", {}), "__nothing__")
    record.added = 1
    assert vars(record)["added"] == 1


@pytest.mark.parametrize("make", [copy.copy, lambda record: pickle.loads(pickle.dumps(record))])
@pytest.mark.parametrize("taken", [True, False])
def test_a_copy_says_the_same(make, taken):
    record = AuditRecord("audit", logging.INFO, "a", {"actor_id": "u"})
    event = AuditEvent("1", "2026-01-01T00:00:00.000000Z", "a", "u", "t")
    if taken:
        record.entry = Entry("t", encode_event(event))
    copied = make(record)
    assert vars(copied) == vars(record)
    if taken:
        assert copied.event == event
    else:
        with pytest.raises(LookupError):
            _ = copied.event
