"""The model that the contract compares with keeps the contract too."""

from __future__ import annotations

import pytest

from logbun_logging.testing import AdapterContract, MemoryAdapter


class TestMemoryAdapter(AdapterContract):
    @pytest.fixture
    def make_adapter(self):
        adapter = MemoryAdapter()
        return lambda: adapter
