"""What the middlewares cost per request: ``python tests/middleware/overhead.py``.

Each figure is the best of 25 runs of 2,000 requests with the headers of a browser, less the same
application without the middleware: CPU time of the calling thread, without a server. Only where the
middleware waits for another thread is it the time on the clock.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from django.conf import settings
from django.utils.functional import SimpleLazyObject

sys.path.insert(0, str(Path(__file__).parents[2]))

from logbun_logging.django import AuditMiddleware
from logbun_logging.middleware import AuditASGIMiddleware, AuditWSGIMiddleware

AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari"
HEADERS = {
    "host": "shop.example",
    "user-agent": AGENT,
    "accept": "text/html,application/xhtml+xml,application/xml;q=0.9",
    "accept-language": "en-GB,en;q=0.5",
    "accept-encoding": "gzip, deflate, br",
    "cookie": "sessionid=0123456789abcdef0123456789abcdef",
    "x-forwarded-for": "198.51.100.7, 203.0.113.9, 10.0.0.2",
    "x-forwarded-proto": "https",
    "x-request-id": "0f8fad5b-d9cb-469f-a165-70867728950e",
    "connection": "keep-alive",
}
SCOPE = {
    "type": "http",
    "client": ("10.0.0.1", 4711),
    "headers": [(name.encode(), value.encode()) for name, value in HEADERS.items()],
}
ENVIRON = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in HEADERS.items()}
ENVIRON["REMOTE_ADDR"] = "10.0.0.1"

TRUSTED = {"trusting nobody": 0, "two proxies": 2, "networks": ["10.0.0.0/8", "2001:db8::/32"]}


async def asgi_app(scope, receive, send):
    pass


def wsgi_app(environ, start_response):
    return [b""]


def wsgi_stream(environ, start_response):
    yield b""


def run_asgi(app):
    with suppress(StopIteration):
        app(SCOPE.copy(), None, None).send(None)


def run_wsgi(app):
    for _ in app(ENVIRON, None):
        pass


def django_request():
    user = SimpleLazyObject(lambda: SimpleNamespace(pk=1, is_authenticated=True))
    return SimpleNamespace(META=ENVIRON, user=user)


def django_app(request):
    return RESPONSE


async def django_async_app(request):
    return RESPONSE


RESPONSE = SimpleNamespace(streaming=False)


def run_django(app):
    app(django_request())


def run_django_async(app, requests=2_000):
    async def serve():
        start = time.perf_counter()
        for _ in range(requests):
            await app(django_request())
        return (time.perf_counter() - start) / requests * 1e6

    return min(asyncio.run(serve()) for _ in range(5))


def microseconds(run, app, requests=2_000, runs=25):
    times = []
    for _ in range(runs):
        start = time.thread_time()
        for _ in range(requests):
            run(app)
        times.append(time.thread_time() - start)
    return min(times) / requests * 1e6


def main():
    settings.configure()
    print(f"Python {sys.version.split()[0]}, µs per request")
    for name, run, app, middleware in (
        ("ASGI", run_asgi, asgi_app, AuditASGIMiddleware),
        ("WSGI", run_wsgi, wsgi_app, AuditWSGIMiddleware),
        ("WSGI, streaming one piece", run_wsgi, wsgi_stream, AuditWSGIMiddleware),
    ):
        bare = microseconds(run, app)
        for trust, proxies in TRUSTED.items():
            cost = microseconds(run, middleware(app, trusted_proxies=proxies)) - bare
            print(f"{name:26} {trust:16} {cost:6.1f}")
    name, trust = "Django, WSGI", "trusting nobody"
    cost = microseconds(run_django, AuditMiddleware(django_app))
    cost -= microseconds(run_django, django_app)
    print(f"{name:26} {trust:16} {cost:6.1f}")
    cost = run_django_async(AuditMiddleware(django_async_app)) - run_django_async(django_async_app)
    print(f"{'Django, ASGI, lazy user':26} {trust:16} {cost:6.1f}")


if __name__ == "__main__":
    main()
