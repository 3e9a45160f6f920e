"""Real servers on loopback sockets that listen before the server starts, so nobody waits."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import uvicorn

from tests.fakes import wait_until

ROOT = Path(__file__).parents[1]


def listen(path=None):
    """Return a listening socket and the arguments of an HTTP client that reaches it."""
    if path is None:
        sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        return sock, {"base_url": f"http://127.0.0.1:{sock.getsockname()[1]}"}
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock, {"base_url": "http://testserver", "uds": str(path)}


def http_client(*, uds=None, timeout=60, **arguments):
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


def rows(database):
    """Return what the audit table of an SQLite file holds, oldest first."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM audit_logs ORDER BY id").fetchall()
    return [dict(row) for row in found]


def wait_for_rows(database, count, timeout=30):
    """Wait until the audit table holds *count* rows or more; return them."""

    def enough():
        nonlocal found
        with suppress(sqlite3.OperationalError):  # no file yet, or no table
            found = rows(database)
        return len(found) >= count

    found = []
    assert wait_until(enough, timeout), f"{len(found)} rows of {count}: {found[-5:]}"
    return found


@contextmanager
def running(command, folder, *, pass_fds=(), end=signal.SIGTERM, **environment):
    """Run a server in a process and folder of its own; end it by a signal, and wait.

    Yields the process; what it wrote is in ``folder / "output"``.
    """
    output = Path(folder) / "output"
    with (
        output.open("a") as log,
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            pass_fds=pass_fds,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(end)
            try:
                process.wait(60)
            finally:
                process.kill()
                print(output.read_text())
