"""One view, and its address."""

from __future__ import annotations

import logging

from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

audit_logger = logging.getLogger("audit")


@require_POST
def create(request: HttpRequest, course_id: str) -> JsonResponse:
    audit_logger.info("course.created", extra={"entity_id": course_id})
    return JsonResponse({"id": course_id})


urlpatterns = [path("courses/<course_id>", create)]
