"""What the contract stores and asks for: chosen for what databases are known to get wrong.

Everything is drawn from a seeded generator, so a run is like the one before.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, Final

from logbun_logging._encoding.encoder import EventEncoder
from logbun_logging._process.counters import Counters
from logbun_logging.event import OBJECT_FIELDS, AuditEvent, decode_event, utc_text
from logbun_logging.options import LimitOptions

__all__ = ["BASE", "encode", "event_at", "hostile_events", "sample_events", "sample_queries"]

#: The moment that sample events lie around.
BASE: Final = datetime(2026, 6, 15, 12, tzinfo=UTC)

#: Letter case, blanks, the wildcards and quotes of SQL, and text beyond ASCII.
_ACTIONS: Final = (
    *("course.created", "course.deleted", "Course.Created", "course", "courses.listed"),
    *("a%.x", "a_.x", "ab.x", 'it\'s "quoted".x', "back\\slash.x", "trailing.x "),
    *("日本.作成", "emoji.😀", "emoji.😁"),
)
_PREFIXES: Final = (
    *(
        "course.*",
        "course*",
        "c*",
        "Course*",
        "a%*",
        "a_*",
        "a*",
        "it's*",
        "back\\*",
        "trailing.x *",
    ),
    *("日*", "emoji.*", "emoji.😀*", "none*", "*"),
)
_ACTORS: Final = ("u1", "U1", "u1 ", " u1", "u1%", "\u00e9", "e\u0301", "0", "null")
_TENANTS: Final = ("t1", "T1", "t1 ", "org/acme", None)
_TYPES: Final = ("course", "user", "", None)
_OUTCOMES: Final = ("success", "denied", None)


def event_at(
    moment: datetime, rng: random.Random, *, action: str = "sample", **fields: Any
) -> AuditEvent:
    """Return an event of *moment*, with an id as that moment would have brought it."""
    milliseconds = int(moment.timestamp() * 1000)
    number = milliseconds << 80 | 0x7 << 76 | rng.getrandbits(12) << 64
    number |= 0b10 << 62 | rng.getrandbits(62)
    return AuditEvent(str(uuid.UUID(int=number)), utc_text(moment), action, **fields)


def sample_events(count: int = 300) -> list[AuditEvent]:
    """Return events of several tenants, many of them of the same microsecond, in no order."""
    rng = random.Random(1)
    events = []
    for _ in range(count):
        moment = BASE + timedelta(seconds=rng.randrange(-60, 60))
        moment += timedelta(microseconds=rng.choice((0, 0, 1, 500_000, 999_999)))
        events.append(
            event_at(
                moment,
                rng,
                action=rng.choice(_ACTIONS),
                actor_id=rng.choice(_ACTORS),
                tenant_id=rng.choice(_TENANTS),
                entity_type=rng.choice(_TYPES),
                entity_id=rng.choice(("1", "01", "1.0", None)),
                outcome=rng.choice(_OUTCOMES),
                request_id=rng.choice((f"r{rng.randrange(30)}", None)),
                metadata=rng.choice(({"n": rng.randrange(9)}, None)),
            )
        )
    return events


def sample_queries(count: int = 60) -> list[dict[str, Any]]:
    """Return the arguments of queries: every filter alone, then combinations."""
    rng = random.Random(2)
    queries: list[dict[str, Any]] = [{}]
    queries += [{"action": action} for action in (*_ACTIONS, *_PREFIXES)]
    queries += [{"actor_id": actor} for actor in (*_ACTORS, "nobody")]
    queries += [{name: _choice(name, rng)} for name in _CHOICES for _ in range(3)]
    for _ in range(count):
        names = rng.sample(sorted(_CHOICES), rng.randint(2, 4))
        queries.append({name: _choice(name, rng) for name in names})
    return queries


_CHOICES: Final[Mapping[str, tuple[Any, ...]]] = {
    "action": (*_ACTIONS, *_PREFIXES),
    "actor_id": _ACTORS,
    "entity_type": ("course", "user", ""),
    "entity_id": ("1", "01", "1.0"),
    "outcome": ("success", "denied"),
    "request_id": ("r1", "r2"),
    "start_date": (),
    "end_date": (),
}


def _choice(name: str, rng: random.Random) -> Any:
    if name in {"start_date", "end_date"}:
        return _some_form(BASE + timedelta(seconds=rng.randrange(-70, 70)), rng)
    if name == "action" and rng.random() < 0.5:
        return rng.sample((*_ACTIONS, *_PREFIXES), rng.randint(1, 4))
    return rng.choice(_CHOICES[name])


def _some_form(moment: datetime, rng: random.Random) -> str | datetime:
    """Return *moment* as a caller may write it: with or without offset, as text or not."""
    there = moment.astimezone(timezone(timedelta(hours=rng.choice((-11, -3.5, 0, 5.75, 14)))))
    plain = moment.replace(tzinfo=None)
    forms = (moment, there, plain, there.isoformat(), f"{plain.isoformat()}Z", plain.isoformat())
    return rng.choice(forms)


class _Colour(Enum):
    RED = "red"


@dataclass
class _Point:
    x: int
    y: float


class _Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


_TEXTS: Final[Mapping[str, str]] = {
    "empty text": "",
    "NUL": "a\0b\0",
    "lone surrogates": "\ud800 and \udc00",
    "a pair of surrogates": "\ud83d\ude00",
    "emoji": "👩‍👩‍👧 🇺🇦 😀",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x85",
    "quotes": """it's "quoted" `so` $1 ? %s :x {} \\ \\N \\x00 /* -- */ ;""",
    "SQL": "'); DROP TABLE audit_logs; --",
    "blanks": "  \t leading and trailing \r\n ",
    "line separators": "a\u2028b\u2029c\u0085d",
    "marks and non-characters": "\ufeffa\ufffe\uffff\U0010ffff",
    "right to left": "\u202eabc שלום",
    "combining": "e\u0301 \u00e9",
    "looks like JSON": '{"a": [1, null]}',
    "looks like null": "NULL",
    "looks like a number": "0012.50",
    "long": "😀" * 3000,
}

_INSIDE_ITSELF: Final[dict[str, Any]] = {}
_INSIDE_ITSELF["self"] = _INSIDE_ITSELF


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"in": [value]}
    return value


_OBJECTS: Final[Mapping[str, Any]] = {
    "empty object": {},
    "empty containers": {"list": [], "object": {}, "text": ""},
    "nulls": {"none": None, "list": [None]},
    "numbers": {"floats": [1.0, -0.0, 1e22, 5e-324, 0.1 + 0.2, 1.7976931348623157e308], "int": 1},
    "integers": {"all": [2**53 + 1, 2**63, 2**64, -(2**63), -(2**64), 10**100]},
    "integer without end": {"huge": 10**5000},
    "not a number": {"all": [float("nan"), float("inf"), float("-inf")]},
    "truth": {"yes": True, "one": 1, "no": False, "zero": 0},
    "bytes": {"all": [b"\x00\xff", bytearray(b"a"), memoryview(b"b")]},
    "decimals": {"all": [Decimal("1.10"), Decimal("NaN"), Decimal("1E+400")]},
    "times": {"all": [BASE, BASE.replace(tzinfo=None), BASE.date(), timedelta(days=1, seconds=1)]},
    "uuid, enum, path": {"all": [uuid.UUID(int=7), _Colour.RED, PurePosixPath("/tmp/a")]},  # noqa: S108
    "sets and tuples": {"tuple": (1, 2), "set": {7}, "frozen": frozenset({"a"})},
    "dataclass": {"point": _Point(1, 2.0)},
    "exception": {"error": ValueError("wrong")},
    "unprintable": {"value": _Unprintable()},
    "inside itself": _INSIDE_ITSELF,
    "nested 12 deep": _nested(12),
    "nested 1,000 deep": _nested(1000),
    "no object": [1, 2],
    "keys": {2: "int", None: "none", True: "true", "": "empty", "a.b": 1, "$c": 2, 'd"e': 3},
    "hostile keys and texts": {text: [text] for text in _TEXTS.values()},
    "too large": {str(number): "x" * 1000 for number in range(2000)},
}


def encode(action: object, **fields: Any) -> AuditEvent:
    """Return the event that a call with *fields* would have made, by the real encoder."""
    encoder = EventEncoder(LimitOptions(), None, Counters())
    return decode_event(encoder.encode(action, fields, None, {}, time.time()).payload)


def hostile_events() -> dict[str, AuditEvent]:
    """Return, by a name that says what is in it, events of what no application should log."""
    events = {
        name: encode(
            f"hostile {text}",
            tenant_id=text,
            actor_id=text,
            entity_type=text,
            entity_id=text,
            outcome=text,
            request_id=text,
            ip_address=text,
            user_agent=text,
            metadata={"text": text},
        )
        for name, text in _TEXTS.items()
    }
    for name, value in _OBJECTS.items():
        fields = dict.fromkeys(OBJECT_FIELDS, value)
        events[name] = encode("hostile object", tenant_id="objects", **fields)
    events["nothing"] = encode("")
    return events
