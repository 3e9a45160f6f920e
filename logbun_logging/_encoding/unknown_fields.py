"""Names in a call that are no field of an event: the ``unknown_fields`` option.

They go to the metadata, which is what most of them are for. Some are a field's name misspelt, and
then the field is empty: those are counted, and reported with the field that is probably meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from logbun_logging._process.counters import Counters
from logbun_logging.event import CALL_FIELDS

__all__ = ["UnknownFieldsMode", "make_watch"]

UnknownFieldsMode = Literal["warn", "refuse", "allow"]

#: Other names for a field, without case and underscores.
_SYNONYMS: Final = {
    **{name.replace("_", ""): name for name in CALL_FIELDS},
    **dict.fromkeys(("actor", "userid"), "actor_id"),
    **dict.fromkeys(("tenant", "tenantuuid"), "tenant_id"),
    **dict.fromkeys(("entity", "entityuuid"), "entity_id"),
    **dict.fromkeys(("ip", "ipaddr", "remoteaddr", "clientip", "requestip"), "ip_address"),
    "reqid": "request_id",
    "old": "old_values",
    "new": "new_values",
    "meta": "metadata",
}

#: How alike two names are that differ in a letter or two.
_ALIKE: Final = 0.87

#: Longer names are not misspelt ones.
_LONGEST_NAME: Final = 24

#: Names that are remembered.
_MOST_NAMES: Final = 4_096

Watch = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], None]


def make_watch(mode: UnknownFieldsMode, counters: Counters) -> Watch:
    """Return a function that looks at the unknown names of a call.

    It takes them, the fields that the call names, and its context. It counts what is wrong, each
    with an example for the report.

    Args:
        mode: ``"warn"``: a name that looks like a field's, while that field is empty, is counted
            as ``unknown_fields``. ``"refuse"``: every name is counted, as ``refused_fields``.
            ``"allow"``: nothing is.
        counters: told of them.
    """
    usual: set[str] = set()  # names that mean no field
    all_usual = usual.issuperset

    def warn(
        extra: Mapping[str, Any], fields: Mapping[str, Any], context: Mapping[str, Any]
    ) -> None:
        if all_usual(extra):
            return
        for name in extra:
            meant = None if name in usual else _meant_field(name)
            if meant is None:
                if len(usual) >= _MOST_NAMES:
                    usual.clear()
                usual.add(name)
            elif fields.get(meant) is None and context.get(meant) is None:
                counters.add("unknown_fields", example=f"{name!r}: did you mean {meant!r}?")

    def refuse(
        extra: Mapping[str, Any], _fields: Mapping[str, Any], _context: Mapping[str, Any]
    ) -> None:
        for name in extra:
            counters.add("refused_fields", example=f"{name!r:.100}: give it in metadata")

    def allow(
        _extra: Mapping[str, Any], _fields: Mapping[str, Any], _context: Mapping[str, Any]
    ) -> None:
        return

    watches: dict[str, Watch] = {"warn": warn, "refuse": refuse, "allow": allow}
    return watches[mode]


def _meant_field(name: object) -> str | None:
    if type(name) is not str or len(name) > _LONGEST_NAME:
        return None
    meant = _SYNONYMS.get(name.casefold().replace("_", "").replace("-", ""))
    if meant is None:
        from difflib import get_close_matches  # noqa: PLC0415 - only a new name needs it

        alike = get_close_matches(name, CALL_FIELDS, 1, _ALIKE)
        # A plural is another thing: the entity_ids of a bulk change.
        meant = alike[0] if alike and name != f"{alike[0]}s" else None
    return meant
