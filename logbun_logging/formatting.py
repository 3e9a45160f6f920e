"""Events for other handlers: :class:`AuditFormatter`.

A second handler on an audit logger (a file, a console, the way to a SIEM) gets the caller's record,
which is neither redacted nor cut, and knows nothing of the context. With this formatter it writes
the event instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from logbun_logging._encoding.encoder import EventEncoder
from logbun_logging._encoding.record import AuditRecord
from logbun_logging._encoding.redaction import Redactor
from logbun_logging._engine.intake import encode_record
from logbun_logging._process.counters import Counters
from logbun_logging.errors import ConfigurationError
from logbun_logging.event import CALL_FIELDS, AuditEvent, Entry, decode_event
from logbun_logging.options import LimitOptions, LimitOptionsDict, parse_encoding
from logbun_logging.trail import AuditTrail, get_trail

__all__ = ["AuditFormatter"]


class AuditFormatter(logging.Formatter):
    """Formats any record as the row of its event: one line of JSON with every column.

    ::

        "formatters": {"audit": {"()": "logbun_logging.AuditFormatter", "trail": "my-app"}}

    A record that an audit handler has taken over as an :class:`AuditRecord` (those of ``fire`` and
    those behind a queue) is written with the id that the row has. Of all others the event is made
    again: everything in it is equal, apart from the id. Behind somebody else's queue there is no
    context any more.

    Args:
        trail: whose redaction and limits apply: the trail, or its namespace, which may be
            configured later.
        redact: without a trail: rules, as the option of that name.
        limits: without a trail: as the option of that name.

    Raises:
        ConfigurationError: a rule or limit is wrong, or given beside a trail.
    """

    def __init__(
        self,
        trail: AuditTrail | str | None = None,
        *,
        redact: Iterable[str] | Redactor | None = None,
        limits: LimitOptionsDict | LimitOptions | None = None,
    ) -> None:
        super().__init__()
        self._trail = trail
        if trail is not None and (redact is not None or limits is not None):
            name, value = ("limits", limits) if redact is None else ("redact", redact)
            raise ConfigurationError(name, value, "absent with a trail, whose own apply")
        self._encoder = _encoder(*parse_encoding(redact, limits))
        self._made_for: AuditTrail | None = None  # the trail whose rules the encoder has

    def format(self, record: logging.LogRecord) -> str:
        """Return the event of *record* as JSON.

        Raises:
            LookupError: there is no trail of the namespace yet, so its rules are not known.
                ``logging`` reports that and goes on.
        """
        return msgspec.json.encode(msgspec.structs.asdict(self._event(record))).decode()

    def _event(self, record: logging.LogRecord) -> AuditEvent:
        encoder = self._encoder_now()
        if not isinstance(record, AuditRecord) or (entry := record.entry) is None:
            return decode_event(encode_record(encoder, record).payload)
        event = decode_event(entry.payload)
        if record.encoder is not None and record.encoder.has_rules_of(encoder):
            return event
        # The context of the call is in the event, and nowhere else any more.
        fields = {name: getattr(event, name) for name in CALL_FIELDS}
        again: Entry = encoder.encode(event.action, fields, None, {}, record.created)
        return msgspec.structs.replace(
            decode_event(again.payload),
            id=event.id,
            created_at=event.created_at,
            tenant_id=event.tenant_id,
        )

    def _encoder_now(self) -> EventEncoder:
        if self._trail is not None:
            trail = get_trail(self._trail) if isinstance(self._trail, str) else self._trail
            if trail is not self._made_for:
                self._encoder = _encoder(trail.options.limits, trail.options.redact)
                self._made_for = trail
        return self._encoder


def _encoder(limits: LimitOptions, redactor: Redactor | None) -> EventEncoder:
    # What is wrong with an event is counted where it is stored.
    return EventEncoder(limits, redactor, Counters(), "allow")
