"""The commands at the top of the examples, and how to run them beside each other.

What is added to them is what keeps tests apart: a free port, and a folder of their own.
"""

from __future__ import annotations

import re
import shlex
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.fakes import wait_until
from tests.servers import ROOT, http_client, listen, running

EXAMPLES = ROOT / "examples"


def first_command(file):
    """Return the first command in the docstring of an example."""
    pattern = r"^ *((?:python|uvicorn|gunicorn|uwsgi|celery) .*)"
    return re.search(pattern, file.read_text(), re.MULTILINE)[1]


def command(example):
    """Return the arguments for the interpreter that run an example.

    Args:
        example: its file, relative to the folder of examples, or a whole command.
    """
    line = first_command(EXAMPLES / example) if example.endswith("_app.py") else example
    program, *arguments = shlex.split(line)
    arguments = [
        str(ROOT / word) if word == "examples" or word.startswith("examples/") else word
        for word in arguments
    ]
    if program == "uwsgi":  # no module, but a program with an interpreter of its own in it
        binary = Path(sys.executable).with_name("uwsgi")
        execute = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
        return ["-c", execute, binary, "--virtualenv", sys.prefix, *arguments]
    return arguments if program == "python" else ["-m", program, *arguments]


@contextmanager
def serve(example, folder, *options, **environment):
    """Run an example that is a server in *folder*; yield a client that reaches it.

    Args:
        example: as for :func:`command`.
        folder: where it runs.
        *options: more of the server's own.
        **environment: added to ours.
    """
    words = [*command(example), *options]
    if "runserver" in words:
        # Ctrl-C, and one process: the reloader's child would be killed.
        ending = {"end": signal.SIGINT, **environment}
        with _on_a_port([*words, "{}", "--noreload"], folder, ending) as client:
            yield client
        return
    if "--virtualenv" in words:
        words = ["{}" if word == ":8000" else word for word in words]
        with _on_a_port(words, folder, environment) as client:
            yield client
        return
    sock, arguments = listen()
    if "uvicorn" in words:
        words += ["--fd", str(sock.fileno())]
    else:
        words += ["--bind", f"fd://{sock.fileno()}", "--no-control-socket"]
    with (
        running(words, folder, pass_fds=[sock.fileno()], **environment) as process,
        http_client(**arguments) as client,
    ):
        sock.close()  # else it would take connections when the server has gone
        client.process = process
        yield client


@contextmanager
def _on_a_port(words, folder, environment):
    """Keep a port for a server that takes no socket: bound, but not listening.

    ``{}`` in the command stands for the address.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()

        def listening():
            with suppress(ConnectionRefusedError), socket.create_connection(address):
                return True
            return False

        name = f"127.0.0.1:{address[1]}"
        command = [name if word == "{}" else word for word in words]
        with (
            running(command, folder, **environment) as process,
            http_client(base_url=f"http://{name}") as client,
        ):
            assert wait_until(listening, 30)
            client.process = process
            yield client
