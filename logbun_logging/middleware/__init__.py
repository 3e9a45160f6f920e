"""Middlewares that bind the audit context of each request, for every ASGI and WSGI framework.

Django has its own in :mod:`logbun_logging.django`, which knows ``request.user``.
"""

from __future__ import annotations

from logbun_logging.middleware.asgi import AuditASGIMiddleware
from logbun_logging.middleware.wsgi import AuditWSGIMiddleware

__all__ = ["AuditASGIMiddleware", "AuditWSGIMiddleware"]
