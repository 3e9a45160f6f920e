"""Everything that a request starts audits in its name, behind a real server."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from fastapi import BackgroundTasks, FastAPI
from starlette.concurrency import run_in_threadpool

from logbun_logging import AuditLogger
from logbun_logging.middleware import AuditASGIMiddleware
from logbun_logging.structlog import AuditProcessor
from tests.servers import uvicorn_thread

HEADERS = {
    "x-forwarded-for": "203.0.113.9",
    "user-agent": "test/1",
    "x-request-id": "r1",
    "x-tenant": "t1",
    "x-user": "ann",
}
BOUND = {
    "ip_address": "203.0.113.9",
    "user_agent": "test/1",
    "request_id": "r1",
    "tenant_id": "t1",
    "actor_id": "ann",
}
WAYS = [
    "info",
    "fire",
    "fire_async",
    "structlog",
    "to_thread",
    "run_in_threadpool",
    "def endpoint",
    "background task",
    "background coroutine",
    "task",
]


def header(name):
    return lambda scope: dict(scope["headers"]).get(name, b"").decode() or None


@pytest.fixture
def app(make_trail, make_logger):
    """An application that audits in every way there is."""
    trail = make_trail()
    logger = make_logger(trail.handler)
    typed = AuditLogger(logger)
    bound = structlog.wrap_logger(
        logger,
        processors=[AuditProcessor()],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    app = FastAPI()
    app.state.trail = trail
    app.add_middleware(
        AuditASGIMiddleware,
        trusted_proxies=["127.0.0.1"],
        get_tenant_id=header(b"x-tenant"),
        get_actor_id=header(b"x-user"),
    )
    later = set()

    async def audit_in_loop(action):
        logger.info(action)

    @app.post("/coroutine")
    async def coroutine(tasks: BackgroundTasks):
        logger.info("info")
        typed.fire("fire")
        await typed.fire_async("fire_async")
        bound.bind(plan="pro").info("structlog")
        await asyncio.to_thread(logger.info, "to_thread")
        await run_in_threadpool(logger.info, "run_in_threadpool")
        tasks.add_task(logger.info, "background task")
        tasks.add_task(audit_in_loop, "background coroutine")
        later.add(asyncio.create_task(audit_in_loop("task")))

    @app.post("/function")
    def function():
        logger.info("def endpoint")

    return app


def test_the_context_reaches_every_way_of_auditing(app):
    with uvicorn_thread(app) as client:
        for path in ("/coroutine", "/function"):
            assert client.post(path, headers=HEADERS).status_code == 200

    assert app.state.trail.flush(timeout=30)
    logs = app.state.trail.query(tenant_id="t1").logs
    assert sorted(event.action for event in logs) == sorted(WAYS)
    for event in logs:
        assert {name: getattr(event, name) for name in BOUND} == BOUND
