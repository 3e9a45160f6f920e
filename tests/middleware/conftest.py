"""Real servers on loopback sockets that are listening before the server starts, so nobody waits."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

HERE = Path(__file__).parent


def listen(path=None):
    """Return a listening socket and the arguments of an HTTP client that reaches it."""
    if path is None:
        sock = socket.create_server(("127.0.0.1", 0))
        return sock, {"base_url": f"http://127.0.0.1:{sock.getsockname()[1]}"}
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    transport = httpx.HTTPTransport(uds=str(path))
    return sock, {"base_url": "http://testserver", "transport": transport}


@pytest.fixture
def serve_asgi():
    """Serve an ASGI application by uvicorn in a thread of this process."""

    @contextmanager
    def serve(app, *, unix_socket=None, lifespan="off"):
        sock, arguments = listen(unix_socket)
        config = uvicorn.Config(app, lifespan=lifespan, log_level="critical", proxy_headers=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            with httpx.Client(timeout=20, **arguments) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

    return serve


@pytest.fixture
def serve_wsgi():
    """Serve ``flask_app:app`` by gunicorn in a process of its own."""

    @contextmanager
    def serve(*options, unix_socket=None, **environment):
        sock, arguments = listen(unix_socket)
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{sock.fileno()}"]
        command += ["--chdir", str(HERE), "--no-control-socket", *options, "flask_app:app"]
        with (
            sock,
            subprocess.Popen(
                command,
                pass_fds=[sock.fileno()],
                env={"PYTHONPATH": str(HERE.parents[1]), **environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
        ):
            try:
                with httpx.Client(timeout=20, **arguments) as client:
                    yield client
            finally:
                process.terminate()
                _, errors = process.communicate(timeout=20)
                print(errors)

    return serve
