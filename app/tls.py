"""TLS as a client: whom we connect to is always verified, by name and certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

from app.config import ConfigError


def verifying(cafile: Path | None, setting: str) -> ssl.SSLContext:
    """A context that trusts the authorities of a file (None: the system's). Raises ConfigError naming the setting."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=cafile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"setting {setting}: {cafile} cannot be loaded: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    return context
