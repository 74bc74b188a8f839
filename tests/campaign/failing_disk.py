"""A disk that fails: from now on the kernel answers this process's writes to files with an error.

By seccomp(2), so that RocksDB meets it where it would meet a broken disk. It lasts as long as the process does.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Final

_NO_NEW_PRIVILEGES, _FILTER, _ALL_THREADS = 38, 1, 1
# seccomp itself, then the calls that write to a descriptor: write, pwrite64, writev, pwritev
_CALLS: Final = {"x86_64": (317, (1, 18, 20, 296)), "aarch64": (277, (64, 68, 66, 70))}
_LOAD, _IF_EQUAL, _IF_ABOVE, _RETURN = 0x20, 0x15, 0x25, 0x06
_NUMBER, _FIRST_ARGUMENT = 0, 16  # where in the data that a filter sees
_ALLOW, _FAIL_WITH = 0x7FFF0000, 0x00050000
_STDERR: Final = 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def fail_writes(error: int, but: Iterable[int]) -> None:
    """Every write to a file ends with `error` (an errno); those to the descriptors `but` and to stderr go on.

    Sockets are sent to, not written to. Raises OSError where the kernel does not let us.
    """
    seccomp, writes = _CALLS[os.uname().machine]
    spared = list(but)
    steps = [_step(_LOAD, _NUMBER)]
    steps += [_step(_IF_EQUAL, number, len(writes) - place) for place, number in enumerate(writes)]
    steps += [_step(_RETURN, _ALLOW), _step(_LOAD, _FIRST_ARGUMENT)]
    steps += [_step(_IF_EQUAL, number, len(spared) - place + 1) for place, number in enumerate(spared)]
    steps += [_step(_IF_ABOVE, _STDERR, 0, 1), _step(_RETURN, _FAIL_WITH | error), _step(_RETURN, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(steps))
    program = _Program(len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(
        seccomp, _FILTER, _ALL_THREADS, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "seccomp")


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_so, if_not, value)
