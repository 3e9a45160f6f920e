from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import django
import pytest
from asgiref.sync import iscoroutinefunction
from django.conf import settings

from logbun_logging import AuditTrail, bind_audit_context, get_audit_context
from logbun_logging.errors import ConfigurationError
from tests.servers import uvicorn_thread

AGENT = {"user-agent": "test/1", "x-request-id": "r1"}


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory):
    """A Django site of one file, with users in a database of its own."""
    settings.configure(
        SECRET_KEY="test",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="site-of-this-module",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "logbun_logging.django.AuditMiddleware",
        ],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": tmp_path_factory.mktemp("django") / "site.db",
            }
        },
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    )
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection

    settings.ROOT_URLCONF = urls()
    call_command("migrate", verbosity=0)
    for name in ("ann", "bob"):
        User.objects.create_user(name, password="secret")
    yield
    connection.close()


@pytest.fixture
def ann():
    from django.contrib.auth.models import User

    return User.objects.get(username="ann")


def context():
    """Return what an audit call made here would read."""
    return {name: str(value) for name, value in get_audit_context().items()}


def line():
    return json.dumps(context()) + "\n"


ended = []
abandoned = threading.Event()


async def endless_steps():
    try:
        yield b"x"
        await asyncio.Event().wait()  # here, not while sending, the client's end is heard
    finally:
        ended.append(context())
        abandoned.set()


def sync_steps():
    try:
        yield line()
        bind_audit_context(entity_id="second step")
        yield line()
        yield line()
    finally:
        ended.append(context())


async def async_steps():
    try:
        yield line()
        bind_audit_context(entity_id="second step")
        yield line()
        yield line()
    finally:
        ended.append(context())


def urls():
    from django.contrib.auth import aauthenticate, alogin, authenticate, login, logout
    from django.contrib.auth.models import User
    from django.http import FileResponse, JsonResponse, StreamingHttpResponse
    from django.urls import path

    def sync_view(request):
        return JsonResponse(context())

    async def async_view(request):
        return JsonResponse(context())

    def sync_login(request):
        before = context()
        login(request, authenticate(request, username="bob", password="secret"))
        during = context()
        logout(request)
        return JsonResponse([before, during, context()], safe=False)

    async def forgetful(request):
        bind_audit_context(tenant_id="left behind", outcome="left behind")
        return JsonResponse({})

    async def async_greeting(request):
        before = context()
        return JsonResponse([before["actor_id"], request.user.username], safe=False)

    def kept_greeting(request):
        user = request.user
        return JsonResponse([context()["actor_id"], user.username], safe=False)

    async def async_kept_greeting(request):
        return kept_greeting(request)

    def greeting(request):
        before = context()
        return JsonResponse([before["actor_id"], request.user.username], safe=False)

    async def async_login(request):
        before = context()
        user = await aauthenticate(request, username="bob", password="secret")
        await alogin(request, user)
        return JsonResponse([before, context()], safe=False)

    def api_view(request):
        # As Django REST framework does: the user is known once the view has begun.
        before = context()
        request.user = User.objects.get(username="bob")
        return JsonResponse([before, context()], safe=False)

    def fails(request):
        bind_audit_context(entity_id="left behind")
        raise RuntimeError("on purpose")

    def audits(request):
        logging.getLogger("test.django.audit").info("course.created", extra={"entity_id": "c1"})
        return JsonResponse({})

    async def async_audits(request):
        logging.getLogger("test.django.audit").info("course.created", extra={"entity_id": "c2"})
        return JsonResponse({})

    return (
        path("sync", sync_view),
        path("async", async_view),
        path("forgetful", forgetful),
        path("greeting", greeting),
        path("kept-greeting", kept_greeting),
        path("async-kept-greeting", async_kept_greeting),
        path("async-greeting", async_greeting),
        path("sync-login", sync_login),
        path("async-login", async_login),
        path("api", api_view),
        path("fails", fails),
        path("audits", audits),
        path("async-audits", async_audits),
        path("stream", lambda request: StreamingHttpResponse(sync_steps())),
        path("async-stream", lambda request: StreamingHttpResponse(async_steps())),
        path("endless", lambda request: StreamingHttpResponse(endless_steps())),
        path("file", lambda request: FileResponse(Path(__file__).open("rb"))),
    )


def browse(user=None, headers=AGENT):
    """Return a function that gets a path and decodes the answer, over WSGI."""
    from django.test import Client

    client = Client()
    if user is not None:
        client.force_login(user)
    return lambda path: client.get(path, headers=headers).json()


def browse_async(user=None, headers=AGENT):
    """Return a function that does the same over ASGI."""

    async def get(path):
        response = await visit(path, user, headers)
        return response.json()

    return lambda path: asyncio.run(get(path))


async def visit(path, user=None, headers=AGENT):
    from django.test import AsyncClient

    client = AsyncClient(raise_request_exception=False)
    if user is not None:
        await client.aforce_login(user)
    return await client.get(path, headers=headers)


def visit_wsgi(path, user=None):
    from django.test import Client

    client = Client(raise_request_exception=False)
    if user is not None:
        client.force_login(user)
    return client.get(path, headers=AGENT)


LOCAL = {"ip_address": "127.0.0.1", "user_agent": "test/1", "request_id": "r1"}

both = pytest.mark.parametrize("browser", [browse, browse_async])


@both
@pytest.mark.parametrize("path", ["/sync", "/async"])
def test_a_view_of_either_kind_sees_the_context_in_either_server(browser, path, ann):
    assert browser()(path) == {**LOCAL, "actor_id": "unknown"}
    assert browser(ann)(path) == {**LOCAL, "actor_id": str(ann.pk)}
    assert context() == {}


def test_the_middleware_is_asynchronous_in_an_asynchronous_chain():
    from logbun_logging.django import AuditMiddleware

    async def get_response(request):
        return None

    assert iscoroutinefunction(AuditMiddleware(get_response))
    assert not iscoroutinefunction(AuditMiddleware(lambda request: None))


@both
def test_login_and_logout_in_a_view_change_the_actor_at_once(browser, ann):
    bob = str(ann.pk + 1)

    assert [c["actor_id"] for c in browser()("/sync-login")] == ["unknown", bob, "unknown"]
    assert [c["actor_id"] for c in browser(ann)("/sync-login")] == [str(ann.pk), bob, "unknown"]
    assert [c["actor_id"] for c in browser()("/async-login")] == ["unknown", bob]


@both
def test_a_user_that_the_view_authenticates_is_the_actor(browser, ann):
    assert [c["actor_id"] for c in browser()("/api")] == ["unknown", str(ann.pk + 1)]


def test_a_request_without_audit_calls_does_not_load_the_user(ann, monkeypatch):
    from django.contrib.auth import middleware

    loaded = []
    monkeypatch.setattr(middleware, "get_user", loaded.append)

    assert visit_wsgi("/file", ann).status_code == 200
    assert loaded == []


def varies(response):
    return "cookie" in response.headers.get("vary", "").lower()


@pytest.mark.parametrize(
    "path",
    [
        "/sync",
        "/async",
        "/greeting",
        "/async-greeting",
        "/kept-greeting",
        "/async-kept-greeting",
    ],
)
@pytest.mark.parametrize("server", [visit_wsgi, lambda path, user: asyncio.run(visit(path, user))])
def test_an_audit_call_does_not_make_a_page_depend_on_the_cookie(server, path, ann):
    shows_the_user = "greeting" in path
    response = server(path, ann)
    assert varies(response) is shows_the_user
    if shows_the_user:
        assert response.json() == [str(ann.pk), "ann"]
    assert varies(server(path, None)) is shows_the_user


@both
def test_a_user_that_something_else_put_there_is_asked_instead_of_the_session(browser, ann):
    from django.test import override_settings

    chain = list(settings.MIDDLEWARE)
    chain.insert(2, f"{__name__}.token_middleware")
    with override_settings(MIDDLEWARE=chain), registered():
        for path in ("/sync", "/async"):
            assert browser(ann)(path)["actor_id"] == str(ann.pk + 1)


def token_middleware(get_response):
    """Who a token belongs to wins over the session, and is found out when it is needed."""
    from django.contrib.auth.models import User
    from django.utils.functional import SimpleLazyObject

    def replace(request):
        request.user = SimpleLazyObject(lambda: User.objects.get(username="bob"))

    def serve(request):
        replace(request)
        return get_response(request)

    async def aserve(request):
        replace(request)
        return await get_response(request)

    return aserve if iscoroutinefunction(get_response) else serve


token_middleware.sync_capable = token_middleware.async_capable = True


@both
def test_loading_a_user_may_be_audited_itself(browser, ann):
    from django.contrib.auth.models import User
    from django.db.models.signals import post_init

    seen = []

    def on_load(sender, **arguments):
        seen.append(context().get("actor_id", "unknown"))

    get = browser(ann)
    post_init.connect(on_load, sender=User)
    try:
        assert get("/sync")["actor_id"] == str(ann.pk)
    finally:
        post_init.disconnect(on_load, sender=User)
    assert "unknown" in seen
    assert len(seen) < 5


@both
def test_a_user_that_cannot_be_loaded_is_unknown_and_the_request_goes_on(
    browser, ann, monkeypatch, caplog
):
    from django.contrib.auth import middleware

    def fail(request):
        raise ZeroDivisionError

    monkeypatch.setattr(middleware, "get_user", fail)

    assert browser(ann)("/sync") == {**LOCAL, "actor_id": "unknown"}
    assert "the request goes on without it" in caplog.text


def test_an_error_leaves_nothing_bound():
    async def main():
        response = await visit("/fails")
        assert context() == {}
        return response.status_code

    assert visit_wsgi("/fails").status_code == 500
    assert context() == {}
    assert asyncio.run(main()) == 500


# -- streams -----------------------------------------------------------------------------------


def in_stream(user):
    bound = {**LOCAL, "actor_id": str(user.pk)}
    second = {**bound, "entity_id": "second step"}
    return [bound, second, second], second


def test_the_context_holds_in_each_step_of_a_stream_and_not_between(ann):
    response = visit_wsgi("/stream", ann)
    seen = []
    for part in response.streaming_content:
        assert context() == {}
        seen.append(json.loads(part))
    response.close()

    assert (seen, ended.pop()) == in_stream(ann)


def test_a_stream_that_is_closed_early_ends_in_its_context(ann):
    response = visit_wsgi("/stream", ann)
    next(iter(response.streaming_content))
    response.close()

    assert ended.pop() == {**LOCAL, "actor_id": str(ann.pk)}
    assert context() == {}


def test_the_context_holds_in_each_step_of_an_asynchronous_stream(ann):
    async def main():
        response = await visit("/async-stream", ann)
        seen = []
        async for part in response.streaming_content:
            assert context() == {}
            seen.append(json.loads(part))
        return seen

    assert (asyncio.run(main()), ended.pop()) == in_stream(ann)


def test_an_abandoned_asynchronous_stream_ends_in_its_context(ann):
    from django.http import StreamingHttpResponse
    from django.test import AsyncRequestFactory

    from logbun_logging.django import AuditMiddleware

    async def get_response(request):
        request.user = ann
        return StreamingHttpResponse(steps())

    async def steps():
        try:
            yield b"x"
            yield b"y"
        finally:
            ended.append(context())
            end.set()

    async def main():
        request = AsyncRequestFactory().get("/", headers=AGENT)
        parts = aiter(await AuditMiddleware(get_response)(request))
        await anext(parts)
        await parts.aclose()
        del (
            parts
        )  # as Django does, which leaves it to the interpreter to close the view's generator
        await asyncio.wait_for(end.wait(), 10)

    end = asyncio.Event()
    gc.disable()  # counting references must be enough
    try:
        asyncio.run(main())
    finally:
        gc.enable()
    assert ended.pop() == {**LOCAL, "actor_id": str(ann.pk)}


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_streams_of_the_other_kind_keep_their_context_as_well(ann):
    async def main():
        response = await visit("/stream", ann)
        return [json.loads(part) async for part in response]

    assert (asyncio.run(main()), ended.pop()) == in_stream(ann)
    parts = list(visit_wsgi("/async-stream", ann))
    assert ([json.loads(part) for part in parts], ended.pop()) == in_stream(ann)


# -- settings ----------------------------------------------------------------------------------


def username(request):
    return request.user.get_username() or None


async def async_tenant(request):
    await asyncio.sleep(0)
    return request.headers.get("x-tenant")


def sync_tenant(request):
    from django.contrib.auth.models import User

    assert User.objects.count() == 2  # Django refuses this in an event loop
    return request.headers.get("x-tenant")


@contextmanager
def registered():
    """Make this module importable by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, __name__, SimpleNamespace(**globals()))
        yield


@both
@pytest.mark.parametrize("tenant", ["sync_tenant", "async_tenant"])
def test_options_come_from_the_settings(browser, tenant, ann):
    from django.test import override_settings

    options = {
        "trusted_proxies": 1,
        "forwarded_header": "x-forwarded-for",
        "get_tenant_id": f"{__name__}.{tenant}",
        "get_actor_id": username,
    }
    headers = {**AGENT, "x-forwarded-for": "6.6.6.6, 203.0.113.9", "x-tenant": "t1"}
    with override_settings(LOGBUN_AUDIT=options), registered():
        assert browser(ann, headers)("/async") == {
            **LOCAL,
            "ip_address": "203.0.113.9",
            "tenant_id": "t1",
            "actor_id": "ann",
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("trusted", "^LOGBUN_AUDIT='trusted': allowed is a mapping"),
        ({"trust": 1}, "^LOGBUN_AUDIT='trust': allowed is one of trusted_proxies"),
        ({"trusted_proxies": "all"}, "^trusted_proxies="),
        ({"forwarded_header": "via"}, "^forwarded_header="),
        ({"get_tenant_id": 1}, "^get_tenant_id="),
        ({"get_actor_id": 1}, "^get_actor_id="),
        ({"get_actor_id": async_tenant}, "^get_actor_id=.*not a coroutine function"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(options, message):
    from django.test import override_settings

    from logbun_logging.django import AuditMiddleware

    async def get_response(request):
        return None

    for chain in (get_response, lambda request: None):
        with (
            override_settings(LOGBUN_AUDIT=options),
            pytest.raises(ConfigurationError, match=message),
        ):
            AuditMiddleware(chain)


# -- the whole way -----------------------------------------------------------------------------


@both
def test_the_actor_is_in_the_event(browser, ann, tmp_path):
    trail = AuditTrail(namespace="django", data_dir=tmp_path, adapter=f"sqlite:///{tmp_path}/a.db")
    logger = logging.getLogger("test.django.audit")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(trail.handler)
    try:
        browser(ann)("/audits")
        browser(ann)("/async-audits")
        browser()("/audits")
        trail.flush(timeout=20)
        logs = trail.query().logs
    finally:
        logger.removeHandler(trail.handler)
        trail.shutdown(timeout=20)

    assert [event.actor_id for event in reversed(logs)] == [str(ann.pk)] * 2 + ["unknown"]
    assert {(e.ip_address, e.user_agent, e.request_id) for e in logs} == {tuple(LOCAL.values())}


def test_django_behind_uvicorn(ann):
    from django.core.asgi import get_asgi_application
    from django.test import Client

    session = Client()
    session.force_login(ann)
    cookies = {"sessionid": session.cookies["sessionid"].value}
    with uvicorn_thread(get_asgi_application()) as client:
        client.headers.update(AGENT)
        client.cookies.update(cookies)
        bound = {**LOCAL, "actor_id": str(ann.pk)}
        assert client.get("/sync").json() == bound
        assert client.get("/async").json() == bound
        lines = client.get("/async-stream").text.splitlines()
        assert ([json.loads(text) for text in lines], ended.pop()) == in_stream(ann)
        with client.stream("GET", "/endless") as response:
            next(response.iter_bytes())
        assert abandoned.wait(10)
        assert ended.pop() == bound


@pytest.mark.parametrize("path", ["sync", "async"])
def test_pipelined_requests_are_kept_apart(path):
    from django.core.asgi import get_asgi_application

    with (
        uvicorn_thread(get_asgi_application(), loop="asyncio") as client,
        socket.create_connection(("127.0.0.1", client.base_url.port), 60) as connection,
        connection.makefile("rb") as answers,
    ):
        first = "POST /forgetful HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
        second = f"GET /{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        connection.sendall((first + second).encode())
        found = answers.read()

    assert b'{"ip_address": "127.0.0.1", "actor_id": "unknown"}' in found
