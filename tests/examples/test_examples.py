"""Every example, started by the command at its top, and the rows that it leaves behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.examples.commands import EXAMPLES, command, serve
from tests.servers import running, wait_for_rows

SERVERS = ["fastapi_app.py", "flask_app.py", "litestar_app.py", "django_project/manage.py"]
HEADERS = {
    "x-tenant": "acme",
    "x-user": "ann",
    "authorization": "Bearer ann",
    "user-agent": "test/1",
    "x-request-id": "r1",
    "x-forwarded-for": "203.0.113.9",
}
CREATED = {
    "action": "course.created",
    "entity_id": "7",
    "tenant_id": "acme",
    "actor_id": "ann",
    "ip_address": "203.0.113.9",
    "user_agent": "test/1",
    "request_id": "r1",
}


def told(found):
    return [{name: row[name] for name in CREATED} for row in found]


@pytest.mark.parametrize("example", SERVERS)
def test_a_server_answers_and_the_row_is_there_when_it_has_ended(example, tmp_path):
    expected = [CREATED]
    if example == "fastapi_app.py":
        expected.append({**CREATED, "action": "course.published"})

    with serve(example, tmp_path) as client:
        answer = client.post("/courses/7", headers=HEADERS)
        assert (answer.status_code // 100, answer.json()) == (2, {"id": "7"})

    assert told(wait_for_rows(tmp_path / ".logbun/audit.db", len(expected), 0)) == expected


@pytest.mark.parametrize(
    ("example", "actions"),
    [
        ("script.py", ["course.imported", "course.imported"]),
        ("structlog_script.py", ["course.published", "course.created"]),
    ],
)
def test_a_script_prints_what_it_has_audited(example, actions, tmp_path):
    done = subprocess.run(
        [sys.executable, *command(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert [line.split()[2] for line in done.stdout.splitlines()] == actions
    found = wait_for_rows(tmp_path / ".logbun/audit.db", 2, 0)
    assert {row["tenant_id"] for row in found} == {"acme"}


def test_a_celery_worker_audits_in_the_name_of_the_sender(tmp_path):
    worker, send = command("celery_app.py"), command("celery_app.py", 1)
    with running([*worker, "--concurrency", "2"], tmp_path):
        with running(send, tmp_path, end=0) as sender:
            assert sender.wait(30) == 0
        (row,) = wait_for_rows(tmp_path / ".logbun/audit.db", 1)

    assert told([row]) == [{**CREATED, "user_agent": None, "request_id": None}]


@pytest.mark.parametrize(
    "variant",
    [
        "gunicorn --workers 4 --pythonpath examples/django_project shop.wsgi",
        "uvicorn --app-dir examples/django_project --no-proxy-headers shop.asgi:application",
    ],
)
def test_django_in_production(variant, tmp_path):
    assert variant in (EXAMPLES / "django_project/manage.py").read_text().replace("\n", " ")
    with serve(variant, tmp_path) as client:
        assert client.post("/courses/7", headers=HEADERS).json() == {"id": "7"}

    assert told(wait_for_rows(tmp_path / ".logbun/audit.db", 1, 0)) == [CREATED]
