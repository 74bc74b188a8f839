"""Handles, as `tollgate token` needs them of the cluster: what one stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.cli import common

if TYPE_CHECKING:
    from app.config import Settings
    from app.gate.reasons import Rejected


def grant_of(token: str, settings: Settings) -> str | Rejected:
    """The unverified grant of a handle; any other token speaks for itself."""
    from app import grants
    from app.gate.reasons import Rejected
    from app.gate.reference import is_handle

    if not is_handle(token):
        return token
    found = common.run(grants.find(settings.kafka, token))
    return Rejected("token_unknown") if found is None else found.decode("utf-8", "replace")
