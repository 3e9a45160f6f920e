"""The pytest plug-in of logbun_logging: the fixture ``audit_log``.

A module beside the package, not in it: pytest loads its plug-ins at every start, and before
pytest-cov begins to measure. Nothing of logbun_logging is imported until a test wants the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from logbun_logging.testing import AuditLog

pytest.register_assert_rewrite(
    "logbun_logging.testing.contract", "logbun_logging.testing.server_contract"
)


@pytest.fixture
def audit_log() -> Iterator[AuditLog]:
    """Capture audit events in memory; see :class:`logbun_logging.testing.AuditLog`."""
    from logbun_logging.testing import capture_events  # noqa: PLC0415 - not at every start of pytest

    with capture_events() as log:
        yield log
