"""Users who come with a token: spares the example a database of users."""

from __future__ import annotations

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest
from django.utils.decorators import sync_and_async_middleware


class TokenUser:
    """Whom a token names. Verify a real one here.

    The tenant comes from the token as well: a header of its own would let any client write into
    any tenant's trail.
    """

    def __init__(self, authorization: str) -> None:
        tenant, _, name = authorization.removeprefix("Bearer ").partition(":")
        self.pk = name or None
        self.tenant = tenant or None
        self.is_authenticated = self.pk is not None


@sync_and_async_middleware
def user_middleware(get_response):
    def serve(request: HttpRequest):
        request.user = TokenUser(request.headers.get("authorization", ""))
        return get_response(request)

    async def serve_async(request: HttpRequest):
        request.user = TokenUser(request.headers.get("authorization", ""))
        return await get_response(request)

    return serve_async if iscoroutinefunction(get_response) else serve
