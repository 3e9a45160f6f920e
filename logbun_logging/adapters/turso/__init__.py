"""Turso and every other libSQL server."""

from logbun_logging.adapters.turso.adapter import TursoAdapter

__all__ = ["TursoAdapter"]
