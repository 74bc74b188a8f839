"""The limit: ES256 verification by `cryptography`, and nothing else.

What is timed is EllipticCurvePublicKey.verify with a parsed key and a DER signature made beforehand, over signing
inputs as long as a trigger token's: CPU time of one thread. Neither base64 nor r||s to DER is in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

SIGNING_INPUT_BYTES: Final = 500
SIGNATURES: Final = 200
_ECDSA_SHA256: Final = ec.ECDSA(SHA256())


@cache
def _signed() -> tuple[Any, list[tuple[bytes, bytes]]]:
    private = ec.generate_private_key(ec.SECP256R1())
    messages = [os.urandom(SIGNING_INPUT_BYTES) for _ in range(SIGNATURES)]
    return private.public_key(), [(private.sign(message, _ECDSA_SHA256), message) for message in messages]


def verify_us(seconds: float) -> float:
    """CPU µs of one verification, measured for about `seconds`."""
    public, signed = _signed()
    verify = public.verify
    count = 0
    began, deadline = time.thread_time(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        for signature, message in signed:
            verify(signature, message, _ECDSA_SHA256)
        count += SIGNATURES
    return (time.thread_time() - began) / count * 1e6


def verify_beside_others_us(seconds: float) -> float:
    """The same while every other CPU is busy with it too: virtual CPUs may share a core."""
    spin = f"from scripts.benchmark.raw import verify_us; verify_us({seconds + 1.0})"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range((os.cpu_count() or 1) - 1)]
    try:
        time.sleep(0.5)
        return verify_us(seconds)
    finally:
        for other in others:
            other.wait()
