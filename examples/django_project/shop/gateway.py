"""Users whom a gateway in front has authenticated: spares the example a database of users."""

from __future__ import annotations

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest
from django.utils.decorators import sync_and_async_middleware


class GatewayUser:
    def __init__(self, name: str | None) -> None:
        self.pk = name
        self.is_authenticated = name is not None


@sync_and_async_middleware
def user_middleware(get_response):
    def serve(request: HttpRequest):
        request.user = GatewayUser(request.headers.get("x-user"))
        return get_response(request)

    async def serve_async(request: HttpRequest):
        request.user = GatewayUser(request.headers.get("x-user"))
        return await get_response(request)

    return serve_async if iscoroutinefunction(get_response) else serve
