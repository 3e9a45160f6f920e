"""Which tenant a request is for."""

from __future__ import annotations

from django.http import HttpRequest


def tenant_of(request: HttpRequest) -> str | None:
    return request.user.tenant
