"""The page on web servers: each of its blocks is run as it stands, and makes the rows it shows."""

from __future__ import annotations

import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from tests.examples.commands import EXAMPLES, command, first_command, serve
from tests.servers import ROOT, running, wait_for_rows

PAGE = ROOT / "docs/deploy/servers.md"
DATABASE = ".logbun/audit.db"


def blocks():
    """Return the commands of each block of the page, and the rows that it shows."""
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        lines = block.splitlines()
        yield (
            [line.removeprefix("$ ") for line in lines if line.startswith("$ ")],
            [line for line in lines if not line.startswith("$ ")],
        )


BLOCKS = {commands[0]: (commands, shown) for commands, shown in blocks()}


def curl(client, line):
    """Send the request that a curl command sends."""
    _, _, method, url, *options = shlex.split(line)
    pairs = list(zip(options[::2], options[1::2], strict=True))
    headers = [value.split(": ") for name, value in pairs if name == "-H"]
    headers += [("user-agent", value) for name, value in pairs if name == "-A"]
    answer = client.request(method, "/" + url.split("/", 1)[1], headers=headers)
    assert answer.is_success


def query(folder, line):
    """Return what the sqlite3 command prints."""
    _, _, statement = shlex.split(line)
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        found = connection.execute(statement).fetchall()
    return ["|".join("" if value is None else str(value) for value in row) for row in found]


@pytest.mark.parametrize("start", BLOCKS)
def test_the_commands_of_the_page_make_the_rows_that_it_shows(start, tmp_path):
    (_, *requests, select), shown = BLOCKS[start]
    if "litestar" in start:
        pytest.importorskip("litestar", reason="litestar is missing: pip install -e '.[dev-all]'")

    if start.startswith("celery"):
        with running([*command(start), "--concurrency", "2"], tmp_path):
            for line in requests:
                with running(command(line), tmp_path, end=0) as sender:
                    assert sender.wait(60) == 0
            wait_for_rows(tmp_path / DATABASE, len(shown))
    elif requests:
        with serve(start, tmp_path) as client:
            for line in requests:
                curl(client, line)
            if start.startswith("uwsgi"):  # it runs no exit handlers in a worker that is busy
                wait_for_rows(tmp_path / DATABASE, len(shown))
    else:
        subprocess.run([sys.executable, *command(start)], cwd=tmp_path, check=True, timeout=60)

    assert shown
    assert query(tmp_path, select) == shown


def test_each_examples_own_command_is_on_the_page():
    files = [
        *EXAMPLES.glob("*_app.py"),
        *EXAMPLES.glob("*script.py"),
        EXAMPLES / "django_project/manage.py",
    ]

    assert {first_command(file) for file in files} <= {*BLOCKS}
