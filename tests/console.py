"""Runs the console blocks of a page as they stand, and compares what they print."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```', re.DOTALL | re.MULTILINE)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def commands(text):
    """Yield each command of a page with the lines that it prints."""
    for block in _BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


def write_files(text, folder):
    """Write the files that a page shows under a title."""
    for name, content in _FILE.findall(text):
        (folder / name).write_text(content)


def _shape(printed):
    lines = (" ".join(_TIME.sub("TIME", line).split()) for line in printed.splitlines())
    return [line for line in lines if line.strip("─ ")]


@contextmanager
def shell(folder):
    """Yield a function that runs a command in *folder*; end what it has started."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    groups = []

    def run(command, printed="", within=30):
        command = command.replace("localhost:8000", f"localhost:{port}")
        command = re.sub(r"(uvicorn \S+)", rf"\1 --port {port}", command)
        ends = time.monotonic() + within
        while True:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=folder,
                env={**os.environ, "PATH": path, "COLUMNS": "140"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            groups.append(process.pid)
            out, err = process.communicate(timeout=60)
            if process.returncode == 0 and (not printed or _shape(out) == _shape(printed)):
                return
            # A server starts, or a batch is still on its way.
            assert time.monotonic() < ends, f"$ {command}\n{out}{err}\nexpected:\n{printed}"
            time.sleep(0.2)

    try:
        yield run
    finally:
        for group in groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
