"""What gunicorn serves in test_wsgi.py: every answer is the audit context that a view saw."""

from __future__ import annotations

import json
import os
import threading
from tempfile import NamedTemporaryFile

from flask import Flask, Response, request, send_file, stream_with_context
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from logbun_logging import bind_audit_context, get_audit_context
from logbun_logging.middleware import AuditWSGIMiddleware

app = Flask(__name__)
closed = []
everyone_is_here = threading.Barrier(4)


def context():
    return dict(get_audit_context())


def line():
    return json.dumps(context()) + "\n"


@app.get("/context")
def whole():
    return context()


@app.get("/forgets")
def forgets():
    bind_audit_context(entity_id="left behind")
    return context()


@app.get("/fails")
def fails():
    bind_audit_context(entity_id="left behind")
    raise RuntimeError("on purpose")


@app.get("/together")
def together():
    everyone_is_here.wait(10)
    before = context()
    everyone_is_here.wait(10)
    return [before, context()]


@app.get("/stream")
def stream():
    def steps():
        try:
            yield line()
            bind_audit_context(entity_id="second step")
            yield line()
            yield line()
        finally:
            closed.append(context())

    body = steps()
    return Response(stream_with_context(body) if "with" in request.args else body)


@app.get("/closed")
def last_closed():
    return closed.pop()


@app.get("/file")
def file():
    with NamedTemporaryFile() as temporary:
        temporary.write(b"x" * 100_000)
        temporary.flush()
        return send_file(temporary.name, mimetype="text/plain")


mounted = Flask("mounted")


@mounted.get("/context")
def inside():
    return context()


def tenant(environ):
    return environ.get("HTTP_X_TENANT")


proxies = os.environ.get("TRUSTED_PROXIES", "0")
app.wsgi_app = AuditWSGIMiddleware(
    DispatcherMiddleware(
        app.wsgi_app,
        {"/mounted": AuditWSGIMiddleware(mounted.wsgi_app, get_actor_id=lambda environ: "inner")},
    ),
    trusted_proxies=int(proxies) if proxies.isdigit() else [proxies],
    get_tenant_id=tenant,
)
