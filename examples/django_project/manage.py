"""Django: configured by the ``LOGGING`` and ``LOGBUN_AUDIT`` settings; drains by itself at the end.

    python examples/django_project/manage.py runserver

    curl -X POST localhost:8000/courses/7 -H 'Authorization: Bearer acme:ann'

In production: ``gunicorn --workers 4 --pythonpath examples/django_project shop.wsgi``, or
``uvicorn --app-dir examples/django_project --no-proxy-headers shop.asgi:application``.
"""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    execute_from_command_line(sys.argv)
