"""SQL as SQLite and libSQL speak it, for the adapters of both."""
