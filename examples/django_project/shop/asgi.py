"""What uvicorn serves."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

import logbun_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
django_application = get_asgi_application()


async def application(scope, receive, send):
    """Serve Django, and shut the trail down at the end, for which Django itself has no hook.

    uvicorn dies of its SIGTERM once it has served everything, so ``atexit`` never comes.
    """
    if scope["type"] != "lifespan":
        await django_application(scope, receive, send)
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await logbun_logging.get_trail("django").ashutdown()
    await send({"type": "lifespan.shutdown.complete"})
