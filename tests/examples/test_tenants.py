"""Two hundred requests at once for fifty tenants, over every server: nobody becomes another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.examples.commands import serve
from tests.servers import rows

REQUESTS = 200
TENANTS = 50

SERVERS = {
    "FastAPI on uvicorn": ("fastapi_app.py",),
    "FastAPI on 2 uvicorn workers": ("fastapi_app.py", "--workers", "2"),
    "Litestar on uvicorn": ("litestar_app.py",),
    "Flask on 4 gunicorn workers with threads": ("flask_app.py",),
    "Flask on 4 gunicorn workers with gevent": ("flask_app.py", "--worker-class", "gevent"),
    "Django on runserver": ("python examples/django_project/manage.py runserver",),
    "Django on 4 gunicorn workers with threads": (
        "gunicorn --workers 4 --threads 8 --pythonpath examples/django_project shop.wsgi",
    ),
    "Django on uvicorn": (
        "uvicorn --app-dir examples/django_project --no-proxy-headers shop.asgi:application",
    ),
}


def identity(number):
    """Return what belongs to one request, and to no other one."""
    return {
        "tenant_id": f"tenant-{number % TENANTS}",
        "actor_id": f"user-{number}",
        "ip_address": f"10.1.{number // 250}.{number % 250 + 1}",
        "user_agent": f"agent/{number}",
        "request_id": f"request-{number}",
        "entity_id": str(number),
    }


def headers(number):
    said = identity(number)
    return {
        "authorization": f"Bearer {said['tenant_id']}:{said['actor_id']}",
        "x-forwarded-for": said["ip_address"],
        "user-agent": said["user_agent"],
        "x-request-id": said["request_id"],
    }


@pytest.mark.parametrize("server", SERVERS)
def test_no_event_carries_what_belongs_to_another_request(server, tmp_path):
    if "gevent" in server:
        pytest.importorskip("gevent", reason="gevent is not installed: pip install gevent")
    if "Litestar" in server:
        pytest.importorskip("litestar", reason="litestar is missing: pip install -e '.[dev-all]'")
    with serve(SERVERS[server][0], tmp_path, *SERVERS[server][1:]) as client:

        def ask(number):
            return client.post(f"/courses/{number}", headers=headers(number)).status_code

        with ThreadPoolExecutor(REQUESTS) as pool:
            assert {status // 100 for status in pool.map(ask, range(REQUESTS))} == {2}

    found = rows(tmp_path / ".logbun/audit.db")
    for row in found:
        expected = identity(int(row["entity_id"]))
        assert {name: row[name] for name in expected} == expected
    per_request = 2 if server.startswith("FastAPI") else 1
    seen = sorted(int(row["entity_id"]) for row in found)
    assert seen == sorted([*range(REQUESTS)] * per_request)
