"""The servers that the middlewares are tested behind."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import http_client, listen, uvicorn_thread

HERE = Path(__file__).parent


@pytest.fixture
def serve_asgi():
    """Serve an ASGI application by uvicorn in a thread of this process."""
    return uvicorn_thread


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
                with http_client(**arguments) as client:
                    yield client
            finally:
                process.terminate()
                _, errors = process.communicate(timeout=40)
                print(errors)

    return serve
