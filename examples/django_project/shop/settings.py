"""The settings that matter to the audit trail, and the few that Django needs besides."""

from __future__ import annotations

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "audit": {
            "class": "logbun_logging.AuditQueueHandler",
            "namespace": "django",
            "mode": "durable",
            "adapter": "sqlite:///.logbun/audit.db",
        },
    },
    "loggers": {"audit": {"level": "INFO", "handlers": ["audit"], "propagate": False}},
}
LOGBUN_AUDIT = {
    "trusted_proxies": ["127.0.0.1"],
    "get_tenant_id": "shop.tenants.tenant_of",
}
MIDDLEWARE = [
    "shop.tokens.user_middleware",  # in its place: Django's SessionMiddleware and
    "logbun_logging.django.AuditMiddleware",  # AuthenticationMiddleware, then ours
]

SECRET_KEY = "an example's"
ALLOWED_HOSTS = ["*"]
DEBUG = True  # or runserver wants ALLOWED_HOSTS to be narrower
ROOT_URLCONF = "shop.urls"
