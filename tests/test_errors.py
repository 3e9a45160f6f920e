"""The exceptions themselves."""

from __future__ import annotations

import copy
import pickle

import pytest

from logbun_logging import ConfigurationError, PruneError, QueryError, errors


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("mode", "fast", "'durable'", problem="too fast"),
        ConfigurationError.unknown("mod", "fast", ["mode"]),
        ConfigurationError.missing("mode", "'durable'"),
        ConfigurationError("on_event", lambda: None, "a callable"),
        PruneError({None: 3, "t1": 1}, {"t2": OSError("down")}),
        QueryError("no"),
        errors.NoAnswerError("no"),
    ],
    ids=range(7),
)
def test_errors_come_whole_out_of_another_process(error):
    for found in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(found) is type(error)
        assert (str(found), repr(found)) == (str(error), repr(error))
        for name in vars(error).keys() - {"value", "failures"}:
            assert getattr(found, name) == getattr(error, name)


def test_a_secret_leaves_the_process_with_no_error():
    error = ConfigurationError("adapter", {"password": "hunter2"}, "a URL")
    assert b"hunter2" not in pickle.dumps(error)
