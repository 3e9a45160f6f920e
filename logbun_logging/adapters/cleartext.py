"""Secrets on their way through a network that encrypts nothing: worth a warning."""

from __future__ import annotations

import ipaddress
import warnings

__all__ = ["warn_of_cleartext"]


def warn_of_cleartext(host: str, remedy: str) -> None:
    """Warn of a secret that goes to *host* unencrypted, unless that is this machine.

    Python shows the same warning once.
    """
    if not _is_loopback(host):
        warnings.warn(
            f"the database's credentials and the audit events go to {host} unencrypted: {remedy}",
            stacklevel=3,
        )


def _is_loopback(host: str) -> bool:
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
