"""The built-in redaction rules, for those who show or extend them."""

from logbun_logging._encoding.redaction import DEFAULT_RULES

__all__ = ["DEFAULT_RULES"]
