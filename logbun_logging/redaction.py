"""Redaction rules: the built-in ones, and a redactor with rules of your own alone."""

from logbun_logging._encoding.redaction import DEFAULT_RULES, Redactor

__all__ = ["DEFAULT_RULES", "Redactor"]
