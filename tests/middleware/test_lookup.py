from __future__ import annotations

import asyncio
import enum
import logging
import uuid

import pytest

from logbun_logging import audit_context, get_audit_context
from logbun_logging.errors import ConfigurationError
from logbun_logging.middleware.lookup import Lookup


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def fail(request):
    raise LookupError(request)


async def fail_later(request):
    raise LookupError(request)


def test_a_value_comes_out_as_text():
    identifier = uuid.uuid4()

    assert Lookup("get_actor_id", lambda request: identifier)(None) == str(identifier)
    assert Lookup("get_actor_id", lambda request: request["user"])({"user": 42}) == "42"
    assert Lookup("get_actor_id", lambda request: None)(None) is None


class Tenant(str, enum.Enum):  # noqa: UP042 - StrEnum has another str()
    ACME = "acme"


def test_a_tenant_is_the_same_whether_looked_up_or_given_in_the_call():
    with audit_context(tenant_id=Tenant.ACME):
        given = get_audit_context()["tenant_id"]

    assert given == "acme"
    assert Lookup("get_tenant_id", lambda request: Tenant.ACME)(None) == given


def test_a_coroutine_function_is_awaited():
    async def later(request):
        await asyncio.sleep(0)
        return request["user"]

    lookup = Lookup("get_actor_id", later, may_await=True)

    assert asyncio.run(lookup.ask({"user": 42})) == "42"
    plain = Lookup("get_actor_id", lambda request: "42", may_await=True)
    assert asyncio.run(plain.ask({})) == "42"


def test_a_failure_is_logged_once_in_ten_seconds_and_counted_in_between(caplog):
    clock = Clock()
    lookup = Lookup("get_tenant_id", fail, clock=clock)

    with caplog.at_level(logging.ERROR, "logbun_logging"):
        assert [lookup("r") for _ in range(5)] == [None] * 5
        clock.now += 10
        assert lookup("r") is None

    first, second = caplog.records
    assert first.getMessage() == "get_tenant_id failed; the request goes on without it"
    assert first.exc_info[0] is LookupError
    assert second.getMessage().endswith("(4 more like this)")
    assert {record.name for record in caplog.records} == {"logbun_logging"}


def test_a_coroutine_that_fails_is_logged_as_well(caplog):
    lookup = Lookup("get_tenant_id", fail_later, may_await=True)

    assert asyncio.run(lookup.ask(None)) is None
    assert caplog.records[0].exc_info[0] is LookupError


def test_a_cancelled_lookup_cancels_the_request():
    async def cancelled(request):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Lookup("get_tenant_id", cancelled, may_await=True).ask(None))


def test_an_awaitable_is_a_failure_where_nobody_can_wait(caplog):
    class Later:
        def __await__(self):
            yield

    assert Lookup("get_tenant_id", lambda request: Later())(None) is None
    assert "cannot be awaited here" in str(caplog.records[0].exc_info[1])


@pytest.mark.parametrize("function", [fail_later, "tenant", 0])
def test_what_cannot_be_called_is_refused(function):
    with pytest.raises(ConfigurationError, match="get_tenant_id="):
        Lookup("get_tenant_id", function)
