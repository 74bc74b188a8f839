"""The limit: ES256 verification by `cryptography`, and nothing else.

What is timed is EllipticCurvePublicKey.verify with a parsed key and a DER signature made beforehand, over signing
inputs as long as a trigger token's: CPU time of one thread. Neither base64 nor r||s to DER is in it. Alone before and
after each row, and in bursts while it runs: a row's ratio is to the latter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import cache
from types import TracebackType
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

SIGNING_INPUT_BYTES: Final = 500
SIGNATURES: Final = 200
PAUSE_S: Final = 0.18  # between bursts of all signatures
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


class During:
    """The same while something else is measured: bursts on a thread, a tenth of the time.

    A shared machine is fast one second and slow the next; what is measured at the same time meets the same seconds.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._bursts, daemon=True)
        self._cpu_s = 0.0
        self._count = 0

    @property
    def verify_us(self) -> float:
        return self._cpu_s / self._count * 1e6

    def _bursts(self) -> None:
        public, signed = _signed()
        verify = public.verify
        while not self._stop.is_set():
            began = time.thread_time()
            for signature, message in signed:
                verify(signature, message, _ECDSA_SHA256)
            self._cpu_s += time.thread_time() - began
            self._count += len(signed)
            self._stop.wait(PAUSE_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
