"""What may reach a terminal: no token, no control character. And what no argument may hold, asked of all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_CLIENT_SECRET: Final = re.compile(r"tgs_[0-9a-f]{4,}_[A-Za-z0-9_-]*")  # as `tollgate identities rotate` makes them
_SHORTEST_TOKEN: Final = 20  # a handle; shorter arguments, nearly all, are not worth an import


def printable(text: str) -> str:
    """Text for a person. Whatever steers a terminal (controls, bidi, surrogates) goes; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else REPLACEMENT for c in text)


def printable_json(text: str) -> str:
    """JSON for a program: the same characters as escapes, so that it says what it said. Line breaks are layout."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def sentence(text: str) -> str:
    """Text to say on stderr: as printable, and whatever looks like a token or a secret is taken out, wherever from."""
    from app.gate.redact import redact

    data, _ = redact(text.encode("utf-8", "surrogateescape"), None)
    return printable(_CLIENT_SECRET.sub("(a secret)", data.decode("utf-8", "surrogateescape")))


def fault_of(arguments: Sequence[str]) -> str | None:
    """Why a command line is refused before any of it is used, or None. It does not repeat what was given."""
    for text in arguments:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return "an argument is not UTF-8: nothing that is written to Kafka or shown could hold it"
        if _CLIENT_SECRET.search(text):
            return (
                "tollgate was given a client secret as an argument: it goes into a file, stdin (-) or "
                "TOLLGATE_CLIENT_SECRET, for arguments are seen by all on this machine and kept by the shell; end this "
                "one (`tollgate identities rotate NAME --overlap 0`)"
            )
        if len(text) >= _SHORTEST_TOKEN:
            from app.gate.redact import token_shaped

            if token_shaped(text):
                return (
                    "tollgate was given a token as an argument: it goes into a file, stdin (-) or TOLLGATE_TOKEN, for "
                    "arguments are seen by all on this machine and kept by the shell; revoke this one "
                    "(`tollgate token revoke --token-file FILE`)"
                )
    return None
