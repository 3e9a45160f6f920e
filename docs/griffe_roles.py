"""Turns the roles of reStructuredText in docstrings into code spans, for the API reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:\w+:)?(?:class|data|exc|func|meth|mod|attr|obj|ref):`~?([^`<]+)`")
_LITERAL_BLOCK = re.compile(r"(?m)^( *)(\S.*)?::$")


def _plain(text: str) -> str:
    text = _ROLE.sub(lambda role: f"`{role[1].removeprefix('logbun_logging.')}`", text)
    return _LITERAL_BLOCK.sub(lambda line: f"{line[1]}{line[2]}:" if line[2] else "", text)


class PlainRoles(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of *obj*."""
        if obj.docstring is not None:
            obj.docstring.value = _plain(obj.docstring.value)
