"""Encoded events as lines of JSON, which ClickHouse itself parses.

An event travels as a JSON object whose names are those of the columns. To send it as it is costs
this process a tenth of the time under Python's interpreter lock that columns of values cost, and
the parsing is done by the engine's threads, which need no such lock.

What the engine would take otherwise than we mean it shows at the beginning of an event, which is
always the same: its id, time and action are there, and the actor unless nobody has said who.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from logbun_logging.adapters.base import EncodedBatch
from logbun_logging.event import UNKNOWN_ACTOR

__all__ = ["FORMAT", "SETTINGS", "to_lines"]

FORMAT: Final = "JSONEachRow"

#: How it is read. Known since ClickHouse 24.1.
SETTINGS: Final = {
    "input_format_json_read_objects_as_strings": 1,  # into our columns, as the text that they are
    # Anything else that is no text is refused, as it is where values go in by columns.
    "input_format_json_read_numbers_as_strings": 0,
    "input_format_json_read_bools_as_strings": 0,
    "input_format_json_read_arrays_as_strings": 0,
    "input_format_null_as_default": 0,
    "input_format_skip_unknown_fields": 1,  # of a newer version
    "date_time_input_format": "best_effort",  # ISO 8601
    # Two thousand lines and more keep several threads busy.
    "min_chunk_bytes_for_parallel_parsing": 500_000,
}

#: The beginning of an event, up to the actor. The engine reads a time as text from 1970 to 2199
#: only; an id that is escaped would make another token than the id itself.
_HEAD: Final = re.compile(
    rb'\{"id":"([^"\\]+)","created_at":"(?:19[7-9]|2[01]\d)\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"'
    rb',"action":"(?:[^"\\]+|\\.)*"'
)
_ACTOR: Final = b',"actor_id":'
_NO_ACTOR: Final = f',"actor_id":"{UNKNOWN_ACTOR}"'.encode()


def to_lines(batches: Sequence[EncodedBatch]) -> tuple[list[bytes], bytes] | None:
    """Return the ids of encoded events and the events as lines.

    None says that one of them must be decoded, to be stored as it is meant or to be refused.
    """
    ids: list[bytes] = []
    lines: list[bytes] = []
    for tenant_id, payloads in batches:
        if tenant_id is not None and (not tenant_id or tenant_id[0] == "\0"):
            return None  # see tenant_key
        for payload in payloads:
            head = _HEAD.match(payload)
            if head is None:
                return None
            ids.append(head[1])
            end = head.end()
            if not payload.startswith(_ACTOR, end):
                payload = payload[:end] + _NO_ACTOR + payload[end:]  # noqa: PLW2901 - completed
            lines.append(payload)
    return ids, b"\n".join(lines)
