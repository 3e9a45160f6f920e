"""Real servers on loopback sockets that listen before the server starts, so nobody waits."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import httpx
import uvicorn


def listen(path=None):
    """Return a listening socket and the arguments of an HTTP client that reaches it."""
    if path is None:
        sock = socket.create_server(("127.0.0.1", 0))
        return sock, {"base_url": f"http://127.0.0.1:{sock.getsockname()[1]}"}
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock, {"base_url": "http://testserver", "uds": str(path)}


def http_client(*, uds=None, timeout=20, **arguments):
    """Return a client that opens a connection for each request.

    A server may close a connection after any answer and does not have to say so: uvicorn closes
    when an application raises after Starlette has sent the 500 for it. Whether the next request on
    that connection still gets an answer is a race, so no connection is used twice.
    """
    transport = httpx.HTTPTransport(uds=uds, limits=httpx.Limits(max_keepalive_connections=0))
    return httpx.Client(transport=transport, timeout=timeout, **arguments)


@contextmanager
def uvicorn_thread(app, *, unix_socket=None, **options):
    """Serve an ASGI application by uvicorn in a thread of this process; yield the socket's client.

    Args:
        app: the application.
        unix_socket: a path to listen at, instead of a free TCP port.
        **options: uvicorn's own.
    """
    options = {"lifespan": "off", "proxy_headers": False, **options}
    sock, arguments = listen(unix_socket)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **options))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        with http_client(**arguments) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
