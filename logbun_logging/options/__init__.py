"""The options of a trail: what a user may write, and what the engine reads.

Everything that comes from a user (keyword arguments, ``dictConfig``, JSON, YAML) passes once
through :func:`parse_options` and leaves it as frozen objects. No dictionary of options travels
further. An option is written down in two places:

- ``keywords``: its type and its meaning, for type checkers, editors and the configuration page;
- ``model``: its default and its bounds, for the engine.

``tests/test_options.py`` checks that the two agree.
"""

from __future__ import annotations

from logbun_logging.options.keywords import (
    AdapterSpec,
    BatchingOptionsDict,
    CommonOptionsDict,
    DlqOptionsDict,
    EventCallback,
    FsyncPolicy,
    FullPolicy,
    HandlerOptionsDict,
    LimitOptionsDict,
    Mode,
    PoolOptionsDict,
    RetentionOptionsDict,
    RetryOptionsDict,
    TenancyMode,
    TenancyOptionsDict,
    TrailOptionsDict,
    WalOptionsDict,
)
from logbun_logging.options.model import (
    BatchingOptions,
    DlqOptions,
    LimitOptions,
    PoolOptions,
    RetentionOptions,
    RetryOptions,
    TenancyOptions,
    TrailOptions,
    WalOptions,
)
from logbun_logging.options.parsing import parse_encoding, parse_options

__all__ = [
    "AdapterSpec",
    "BatchingOptions",
    "BatchingOptionsDict",
    "CommonOptionsDict",
    "DlqOptions",
    "DlqOptionsDict",
    "EventCallback",
    "FsyncPolicy",
    "FullPolicy",
    "HandlerOptionsDict",
    "LimitOptions",
    "LimitOptionsDict",
    "Mode",
    "PoolOptions",
    "PoolOptionsDict",
    "RetentionOptions",
    "RetentionOptionsDict",
    "RetryOptions",
    "RetryOptionsDict",
    "TenancyMode",
    "TenancyOptions",
    "TenancyOptionsDict",
    "TrailOptions",
    "TrailOptionsDict",
    "WalOptions",
    "WalOptionsDict",
    "parse_encoding",
    "parse_options",
]
