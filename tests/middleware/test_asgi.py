from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import pickle
import socket
import threading

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from websockets.sync.client import connect

from logbun_logging import audit_context, bind_audit_context, get_audit_context
from logbun_logging.errors import ConfigurationError
from logbun_logging.middleware import AuditASGIMiddleware

SCOPE = {
    "type": "http",
    "client": ("203.0.113.9", 4711),
    "headers": [(b"user-agent", b"curl/8"), (b"x-request-id", b"r1"), (b"accept", b"*/*")],
}
BOUND = {"ip_address": "203.0.113.9", "user_agent": "curl/8", "request_id": "r1"}


def context():
    return dict(get_audit_context())


async def call(app, scope=SCOPE, receive=None, send=None, **options):
    await AuditASGIMiddleware(app, **options)(dict(scope), receive, send)


class Recorder:
    def __init__(self):
        self.seen = []

    async def __call__(self, scope, receive, send):
        self.seen.append(context())
        await asyncio.sleep(0)
        self.seen.append(context())


def run(app, *arguments, **options):
    """Serve one scope; return what is bound afterwards."""

    async def serve():
        try:
            await call(app, *arguments, **options)
        finally:
            assert context() == {}

    asyncio.run(serve())


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_context_holds_in_the_application_and_not_after_it(kind):
    app = Recorder()

    run(app, {**SCOPE, "type": kind})

    assert app.seen == [BOUND] * 2


@pytest.mark.parametrize(("lines", "address"), [(64, "198.51.100.7"), (65, "203.0.113.9")])
def test_a_header_of_too_many_lines_is_not_believed(lines, address):
    app = Recorder()
    forged = [(b"x-forwarded-for", b"6.6.6.6")] * (lines - 1)
    headers = [*forged, (b"x-forwarded-for", b"198.51.100.7")]

    run(app, {**SCOPE, "headers": headers}, trusted_proxies=1)

    assert app.seen == [{"ip_address": address}] * 2


def test_many_lines_of_the_client_s_own_headers_are_cut():
    app = Recorder()

    run(app, {**SCOPE, "headers": [(b"user-agent", b"a")] * 1000})

    assert app.seen[0]["user_agent"] == ",".join("a" * 64)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda scope: pickle.loads(pickle.dumps(scope))]
)
def test_an_application_may_copy_the_scope(duplicate):
    copies = []

    async def app(scope, receive, send):
        copies.append(duplicate(scope))

    with audit_context(tenant_id="around"):
        asyncio.run(call(app))

    (found,) = copies
    assert {name: found[name] for name in SCOPE} == SCOPE


def test_other_scopes_pass_through_untouched():
    given = ({"type": "lifespan", "state": {}}, object(), object())
    seen = []

    async def app(*arguments):
        seen.append((arguments, context()))

    asyncio.run(AuditASGIMiddleware(app, get_tenant_id=lambda scope: "t1")(*given))

    ((arguments, bound),) = seen
    assert all(a is b for a, b in zip(arguments, given, strict=True))
    assert bound == {}


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
def test_an_error_leaves_nothing_bound(error):
    async def app(scope, receive, send):
        bind_audit_context(entity_id="left behind")
        raise error

    with pytest.raises(error):
        run(app)


def test_a_request_without_peer_and_headers_binds_nothing():
    app = Recorder()

    run(app, {"type": "http", "client": None, "headers": []}, trusted_proxies=1)

    assert app.seen[0] == {}


def test_lines_of_one_header_are_joined_in_their_order():
    app = Recorder()
    headers = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"198.51.100.7, 10.0.0.2")]

    run(app, {**SCOPE, "headers": headers}, trusted_proxies=2)

    assert app.seen[0] == {"ip_address": "198.51.100.7"}


def test_lookups_may_be_plain_or_coroutine_functions():
    async def tenant(scope):
        await asyncio.sleep(0)
        return "t1"

    app = Recorder()

    run(app, get_tenant_id=tenant, get_actor_id=lambda scope: 42)

    assert app.seen[0] == {**BOUND, "tenant_id": "t1", "actor_id": "42"}


def test_a_lookup_that_fails_leaves_the_request_without_the_value(caplog):
    async def fail(scope):
        raise KeyError("tenant")

    async def app(scope, receive, send):
        assert context() == BOUND

    async def main():
        with audit_context(tenant_id="t0"):
            await call(app, get_tenant_id=fail)

    asyncio.run(main())
    assert "get_tenant_id failed" in caplog.text


def test_a_task_that_the_request_starts_keeps_its_context():
    seen = []

    async def later(go):
        await go.wait()
        seen.append(context())

    async def main():
        go = asyncio.Event()

        async def app(scope, receive, send):
            tasks.append(asyncio.create_task(later(go)))

        tasks = []
        await call(app)
        await call(app, {**SCOPE, "client": ("203.0.113.10", 1)})
        go.set()
        await asyncio.gather(*tasks)
        assert context() == {}

    asyncio.run(main())
    assert [c["ip_address"] for c in seen] == ["203.0.113.9", "203.0.113.10"]


@pytest.mark.parametrize(
    "options",
    [
        {"trusted_proxies": ["0.0.0.0/0"]},
        {"forwarded_header": "via"},
        {"get_tenant_id": "tenant"},
        {"get_actor_id": 0},
    ],
    ids=repr,
)
def test_a_bad_option_is_refused_at_construction(options):
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"^{name}="):
        AuditASGIMiddleware(Recorder(), **options)


# -- requests that begin inside of others -------------------------------------------------------


async def within_another_request(serve):
    """Serve a request that binds an actor by hand, and *serve* in a task started within it."""

    async def earlier(scope, receive, send):
        bind_audit_context(tenant_id="t1", actor_id="ann")
        tasks.append(asyncio.create_task(serve()))

    tasks = []
    with audit_context(outcome="around"):
        await call(earlier)
        return await tasks[0]


def test_a_request_that_a_server_begins_inside_of_another_inherits_nothing_from_it():
    app = Recorder()

    async def later():
        await call(app, get_tenant_id=lambda scope: lookups.append(context()))
        return context()

    lookups = []
    left = asyncio.run(within_another_request(later))

    assert app.seen == [{**BOUND, "outcome": "around"}] * 2
    assert lookups == [{"outcome": "around"}]
    assert left == {**BOUND, "outcome": "around", "tenant_id": "t1", "actor_id": "ann"}


def test_a_request_made_in_process_is_another_one_and_the_outer_one_goes_on():
    inner = Recorder()
    seen = []

    async def outer(scope, receive, send):
        bind_audit_context(actor_id="ann")
        await call(inner, {**SCOPE, "client": ("203.0.113.10", 1)})
        seen.append(context())

    run(outer)

    assert inner.seen == [{**BOUND, "ip_address": "203.0.113.10"}] * 2
    assert seen == [{**BOUND, "actor_id": "ann"}]


def test_a_mounted_application_keeps_what_the_outer_one_has_bound():
    inner = Recorder()

    async def outer(scope, receive, send):
        bind_audit_context(actor_id="ann")
        await AuditASGIMiddleware(inner)({**scope, "path": "/mounted"}, receive, send)
        assert context() == {**BOUND, "actor_id": "ann"}

    run(outer)

    assert inner.seen == [{**BOUND, "actor_id": "ann"}] * 2


async def binding_app(scope, receive, send):
    """Answer with the context, after reading the body; bind more if there is one."""
    found, body = context(), b""
    while not body.endswith(b"."):
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    if body:
        bind_audit_context(tenant_id="t1", actor_id="ann")
    answer = json.dumps(found).encode()
    length = (b"content-length", str(len(answer)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": answer})


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("parser", ["h11", "httptools"])
@pytest.mark.parametrize("size", [1, 2_000_000], ids=["pipelined", "large body"])
def test_requests_of_one_connection_are_kept_apart(serve_asgi, loop, parser, size):
    first = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size
    second = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    app = AuditASGIMiddleware(binding_app)
    with (
        serve_asgi(app, loop=loop, http=parser) as client,
        socket.create_connection(("127.0.0.1", client.base_url.port), 60) as connection,
        connection.makefile("rb") as answers,
    ):
        # The size makes uvicorn stop reading, and start again within the first request.
        connection.sendall(first + b"x" * (size - 1) + b"." + (second if size == 1 else b""))
        if size > 1:
            head = answers.readline()
            while head.strip():
                head = answers.readline()
            assert json.loads(answers.read(len('{"ip_address": "127.0.0.1"}')))
            connection.sendall(second)
        last = answers.read().split(b"\r\n\r\n")[-1]

    assert json.loads(last) == {"ip_address": "127.0.0.1"}


# -- Starlette and FastAPI behind uvicorn ------------------------------------------------------

AGENT = {"user-agent": "test/1", "x-request-id": "r1"}
LOCAL = {"ip_address": "127.0.0.1", "user_agent": "test/1", "request_id": "r1"}


def tenant(scope):
    return dict(scope["headers"]).get(b"x-tenant", b"").decode() or None


def starlette_app(seen):
    async def endpoint(request):
        threads = await asyncio.gather(asyncio.to_thread(context), run_in_threadpool(context))
        return JSONResponse([context(), *threads])

    async def fails(request):
        bind_audit_context(entity_id="left behind")
        raise RuntimeError("on purpose")

    async def streams(request):
        async def steps():
            for _ in range(3):
                yield json.dumps(context()) + "\n"
                await asyncio.sleep(0)

        return StreamingResponse(steps())

    async def endless(request):
        async def steps():
            try:
                yield b"x"
                await asyncio.Event().wait()  # here, not while sending, the client's end is heard
            finally:
                seen.append(context())
                ended.set()

        return StreamingResponse(steps())

    async def websocket(socket):
        await socket.accept()
        async for _ in socket.iter_text():
            await socket.send_json(context())

    async def own_task(request, call_next):
        return await call_next(request)

    ended = threading.Event()
    mounted = AuditASGIMiddleware(
        Starlette(routes=[Route("/context", endpoint)]), get_actor_id=lambda scope: "inner"
    )
    app = Starlette(
        routes=[
            Route("/context", endpoint),
            Route("/fails", fails),
            Route("/streams", streams),
            Route("/endless", endless),
            WebSocketRoute("/socket", websocket),
            Mount("/mounted", mounted),
        ],
        middleware=[
            Middleware(AuditASGIMiddleware, trusted_proxies=["127.0.0.1"], get_tenant_id=tenant),
            Middleware(BaseHTTPMiddleware, dispatch=own_task),  # runs the rest in another task
        ],
    )
    app.state.ended = ended
    return app


def test_starlette_behind_uvicorn(serve_asgi):
    seen = []
    app = starlette_app(seen)
    with serve_asgi(app) as client:
        headers = {**AGENT, "x-tenant": "t1"}
        bound = {**LOCAL, "tenant_id": "t1"}

        assert client.get("/context", headers=AGENT).json() == [LOCAL] * 3
        assert client.get("/context", headers=headers).json() == [bound] * 3
        mounted = client.get("/mounted/context", headers=headers).json()
        assert mounted == [{**bound, "actor_id": "inner"}] * 3
        assert client.get("/fails", headers=headers).status_code == 500
        assert client.get("/context", headers=AGENT).json() == [LOCAL] * 3

        lines = client.get("/streams", headers=headers).text.splitlines()
        assert [json.loads(line) for line in lines] == [bound] * 3
        with client.stream("GET", "/endless", headers=headers) as response:
            next(response.iter_bytes())
        assert app.state.ended.wait(10)
        assert seen == [bound]

        forwarded = [
            *AGENT.items(),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "10.1.1.1"),
        ]
        assert client.get("/context", headers=forwarded).json()[0]["ip_address"] == "10.1.1.1"


def test_a_websocket_behind_uvicorn(serve_asgi):
    with serve_asgi(starlette_app([])) as client:
        url = str(client.base_url).replace("http:", "ws:") + "/socket"
        headers = {"x-tenant": "t1", "x-request-id": "r1", "x-forwarded-for": "203.0.113.9"}
        with connect(url, additional_headers=headers, user_agent_header="test/1") as socket:
            for _ in range(2):
                socket.send("?")
                assert json.loads(socket.recv(10)) == {
                    **LOCAL,
                    "ip_address": "203.0.113.9",
                    "tenant_id": "t1",
                }


@pytest.mark.parametrize(("trusted_proxies", "chosen"), [(["unix"], "203.0.113.9"), (0, None)])
def test_uvicorn_on_a_unix_socket(serve_asgi, tmp_path, trusted_proxies, chosen):
    async def answer(scope, receive, send):
        body = json.dumps(context()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    app = AuditASGIMiddleware(answer, trusted_proxies=trusted_proxies)
    with serve_asgi(app, unix_socket=tmp_path / "socket") as client:
        answer = client.get("/", headers={"x-forwarded-for": "6.6.6.6, 203.0.113.9"})

        assert answer.json().get("ip_address") == chosen


def fastapi_app(log):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        log.append(("start", context()))
        yield
        log.append(("stop", context()))

    async def current_user(request: Request):
        bind_audit_context(actor_id=request.headers.get("x-user"))

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(AuditASGIMiddleware, get_tenant_id=tenant)

    @app.get("/async", dependencies=[Depends(current_user)])
    async def in_the_loop():
        return context()

    @app.get("/sync", dependencies=[Depends(current_user)])
    def in_a_thread():
        return context()

    @app.get("/background")
    async def background(tasks: BackgroundTasks):
        def in_thread():
            log.append(("thread", context()))

        async def in_loop():
            log.append(("loop", context()))

        tasks.add_task(in_thread)
        tasks.add_task(in_loop)
        return context()

    @app.get("/together")
    async def together(request: Request):
        before = context()
        await everybody.wait()
        return [before, context()]

    everybody = asyncio.Barrier(20)
    return app


def test_fastapi_behind_uvicorn(serve_asgi):
    log = []
    with serve_asgi(fastapi_app(log), lifespan="on") as client:
        headers = {**AGENT, "x-tenant": "t1"}
        bound = {**LOCAL, "tenant_id": "t1"}

        for path in ("/async", "/sync"):
            answer = client.get(path, headers={**headers, "x-user": "u1"})
            assert answer.json() == {**bound, "actor_id": "u1"}
            assert client.get(path, headers=headers).json() == bound
        assert client.get("/background", headers=headers).json() == bound

    assert log == [("start", {}), ("thread", bound), ("loop", bound), ("stop", {})]


def test_concurrent_requests_never_see_each_other(serve_asgi):
    answers = {}

    def ask(name):
        answers[name] = client.get("/together", headers={"x-tenant": name, "user-agent": name})

    with serve_asgi(fastapi_app([])) as client:
        threads = [threading.Thread(target=ask, args=(f"t{n}",)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    assert len(answers) == 20
    for name, answer in answers.items():
        for seen in answer.json():
            assert (seen["tenant_id"], seen["user_agent"]) == (name, name)
