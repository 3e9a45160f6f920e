from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import flask
import pytest

from logbun_logging import audit_context, bind_audit_context, get_audit_context
from logbun_logging.errors import ConfigurationError
from logbun_logging.middleware import AuditWSGIMiddleware
from logbun_logging.middleware.wsgi import ContextIterator

ENVIRON = {"REMOTE_ADDR": "203.0.113.9", "HTTP_USER_AGENT": "curl/8", "HTTP_X_REQUEST_ID": "r1"}
BOUND = {"ip_address": "203.0.113.9", "user_agent": "curl/8", "request_id": "r1"}


def context():
    return dict(get_audit_context())


def call(app, environ=ENVIRON, **options):
    return AuditWSGIMiddleware(app, **options)(dict(environ), lambda status, headers: None)


class Recorder:
    """An application whose body takes several steps, and what it saw in each."""

    def __init__(self):
        self.seen = []

    def __call__(self, environ, start_response):
        self.seen.append(context())
        return self.body()

    def body(self):
        try:
            for piece in (b"1", b"2", b"3"):
                self.seen.append(context())
                yield piece
        finally:
            self.seen.append(context())


def test_the_context_holds_in_the_application_and_not_after_it():
    app = Recorder()

    body = call(app)

    assert app.seen == [BOUND]
    assert context() == {}
    body.close()


def test_a_list_of_pieces_stays_a_list():
    class Pieces(list):
        """What some frameworks return."""

    assert type(call(lambda environ, start_response: Pieces([b"1"]))) is Pieces


def test_a_list_that_has_to_be_closed_is_closed_in_the_context():
    closed = []

    class Pieces(list):
        def close(self):
            closed.append(context())

    call(lambda environ, start_response: Pieces([b"1"])).close()

    assert closed == [BOUND]


def test_the_test_client_of_flask_may_keep_a_request_open():
    app = flask.Flask(__name__)

    @app.get("/")
    def stream():
        def pieces():
            yield flask.request.path
            yield context()["request_id"]

        return flask.stream_with_context(pieces())

    app.wsgi_app = AuditWSGIMiddleware(app.wsgi_app)
    with app.test_client() as client:
        for number in ("r1", "r2"):
            response = client.get("/", headers={"x-request-id": number})
            assert response.text == f"/{number}"
            assert flask.request.path == "/"  # what the block is for
    assert context() == {}
    assert not flask.has_request_context()


def test_a_request_of_the_test_client_that_fails_leaves_nothing_bound():
    app = flask.Flask(__name__)
    app.testing = True
    app.wsgi_app = AuditWSGIMiddleware(app.wsgi_app)

    @app.get("/")
    def fail():
        raise RuntimeError("on purpose")

    with app.test_client() as client, pytest.raises(RuntimeError, match="on purpose"):
        client.get("/")
    assert context() == {}


def test_the_context_holds_in_each_step_of_the_body_and_not_between():
    app = Recorder()

    for _ in call(app):
        assert context() == {}

    assert app.seen == [BOUND] * 5
    assert context() == {}


def test_a_body_that_is_closed_early_ends_in_its_context():
    app = Recorder()
    body = call(app)
    next(iter(body))

    body.close()

    assert app.seen == [BOUND] * 3
    assert context() == {}


def test_what_one_step_binds_the_next_one_sees_and_nobody_else():
    def app(environ, start_response):
        with audit_context(entity_id="outer"):
            yield context()["entity_id"]
            bind_audit_context(entity_id="inner")
            yield context()["entity_id"]
        yield context().get("entity_id")

    seen = []
    for value in call(app):
        assert context() == {}
        seen.append(value)

    assert seen == ["outer", "inner", None]


def test_interleaved_bodies_on_one_thread_do_not_meet():
    def app(environ, start_response):
        for _ in range(3):
            yield context()["ip_address"]

    addresses = [f"203.0.113.{n}" for n in range(20)]
    bodies = [call(app, {"REMOTE_ADDR": address}) for address in addresses]

    assert [list(step) for step in zip(*bodies, strict=True)] == [addresses] * 3


def test_an_error_leaves_nothing_bound():
    def app(environ, start_response):
        bind_audit_context(entity_id="left behind")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(app)

    assert context() == {}


def test_an_error_in_the_body_leaves_nothing_bound():
    def app(environ, start_response):
        yield b"1"
        raise ZeroDivisionError

    body = call(app)
    with pytest.raises(ZeroDivisionError):
        list(body)

    assert context() == {}


@pytest.mark.parametrize("body", [[b"x"], (b"x",)])
def test_a_finished_body_is_handed_back_as_it_is(body):
    assert call(lambda environ, start_response: body) is body


def test_a_body_in_the_servers_file_wrapper_is_handed_back_as_it_is():
    environ = {**ENVIRON, "wsgi.file_wrapper": FileWrapper}

    body = call(lambda e, start: e["wsgi.file_wrapper"](io.BytesIO(b"x")), environ)

    assert type(body) is FileWrapper


@pytest.mark.parametrize("file_wrapper", [FileWrapper, iter])
def test_any_other_file_is_iterated_over(file_wrapper):
    environ = {**ENVIRON, "wsgi.file_wrapper": file_wrapper}

    body = call(lambda e, start: io.BytesIO(b"x"), environ)

    assert type(body) is ContextIterator
    assert list(body) == [b"x"]
    body.close()


def test_a_body_need_not_have_a_close():
    body = call(lambda environ, start_response: iter([b"x"]))

    assert list(body) == [b"x"]
    body.close()


def test_a_mounted_application_adds_to_the_context_and_takes_it_away():
    inner = Recorder()
    mounted = AuditWSGIMiddleware(inner, get_actor_id=lambda environ: "inner")
    after = []

    def outer(environ, start_response):
        body = mounted(environ, start_response)
        after.append(context())
        return body

    assert list(call(outer, get_tenant_id=lambda environ: "t1")) == [b"1", b"2", b"3"]
    assert inner.seen == [{**BOUND, "tenant_id": "t1", "actor_id": "inner"}] * 5
    assert after == [{**BOUND, "tenant_id": "t1"}]


def test_a_request_never_inherits_what_it_does_not_say():
    app = Recorder()
    with audit_context(
        tenant_id="t0", ip_address="192.0.2.1", user_agent="old", request_id="r0", outcome="kept"
    ):
        list(call(app, {"REMOTE_ADDR": ""}, get_tenant_id=lambda environ: None))

    assert app.seen[0] == {"outcome": "kept"}


def test_a_lookup_that_fails_leaves_the_request_without_the_value(caplog):
    def fail(environ):
        raise KeyError("X-Tenant")

    app = Recorder()
    with audit_context(tenant_id="t0"):
        list(call(app, get_tenant_id=fail, get_actor_id=lambda environ: 42))

    assert app.seen[0] == {**BOUND, "actor_id": "42"}
    assert "get_tenant_id failed" in caplog.text


def test_the_protocol_is_kept():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"x"])

    environ = {
        **ENVIRON,
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "QUERY_STRING": "",
        "wsgi.version": (1, 0),
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.url_scheme": "http",
    }
    body = validator(AuditWSGIMiddleware(validator(app)))(
        environ, lambda status, headers, exc_info=None: lambda data: None
    )

    assert list(body) == [b"x"]
    body.close()


@pytest.mark.parametrize(
    "options",
    [
        {"trusted_proxies": "yes"},
        {"forwarded_header": "via"},
        {"get_tenant_id": "tenant"},
        {"get_actor_id": 0},
    ],
    ids=repr,
)
def test_a_bad_option_is_refused_at_construction(options):
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"^{name}="):
        AuditWSGIMiddleware(Recorder(), **options)


# -- Flask behind gunicorn ---------------------------------------------------------------------

AGENT = {"user-agent": "test/1", "x-request-id": "r1"}


def test_flask_behind_one_gunicorn_worker(serve_wsgi):
    with serve_wsgi(TRUSTED_PROXIES="127.0.0.0/8") as client:
        bound = {"ip_address": "127.0.0.1", "user_agent": "test/1", "request_id": "r1"}
        tenant = {**AGENT, "x-tenant": "t1"}

        assert client.get("/context", headers=AGENT).json() == bound
        assert client.get("/context", headers=tenant).json() == {**bound, "tenant_id": "t1"}
        forwarded = [
            *AGENT.items(),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "10.1.1.1"),
            ("x_forwarded_for", "6.6.6.6"),  # the same name to CGI: gunicorn drops it
        ]
        assert client.get("/context", headers=forwarded).json()["ip_address"] == "10.1.1.1"
        mounted = client.get("/mounted/context", headers=tenant).json()
        assert mounted == {**bound, "tenant_id": "t1", "actor_id": "inner"}

        # One worker, one thread: what a request leaves behind, the next one would find.
        assert client.get("/forgets", headers=tenant).json()["entity_id"] == "left behind"
        assert client.get("/fails", headers=tenant).status_code == 500
        assert client.get("/context", headers=AGENT).json() == bound

        for path in ("/stream", "/stream?with"):
            lines = client.get(path, headers=tenant).text.splitlines()
            expected = {**bound, "tenant_id": "t1"}
            second = {**expected, "entity_id": "second step"}
            assert [json.loads(line) for line in lines] == [expected, second, second]
            assert client.get("/closed", headers=AGENT).json() == second

        assert client.get("/file", headers=tenant).text == "x" * 100_000
        assert client.get("/context", headers=AGENT).json() == bound


def test_flask_behind_gunicorn_threads(serve_wsgi):
    with (
        serve_wsgi("--threads", "4", "--worker-class", "gthread") as client,
        ThreadPoolExecutor(4) as pool,
    ):
        for turn in range(5):
            tenants = [f"t{turn}-{n}" for n in range(4)]
            headers = [{"x-tenant": tenant, "user-agent": tenant} for tenant in tenants]
            answers = list(pool.map(lambda h: client.get("/together", headers=h).json(), headers))
            for tenant, seen in zip(tenants, answers, strict=True):
                assert [c["tenant_id"] for c in seen] == [tenant] * 2
                assert [c["user_agent"] for c in seen] == [tenant] * 2


def test_gunicorn_on_a_unix_socket(serve_wsgi, tmp_path):
    headers = {**AGENT, "x-forwarded-for": "203.0.113.9"}
    with serve_wsgi(unix_socket=tmp_path / "a", TRUSTED_PROXIES="unix") as client:
        assert client.get("/context", headers=headers).json()["ip_address"] == "203.0.113.9"
    with serve_wsgi(unix_socket=tmp_path / "b") as client:
        assert "ip_address" not in client.get("/context", headers=headers).json()
