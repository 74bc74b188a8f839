"""Becomes another program that the kernel kills when the process which started it ends, however it ends.

Run as a script, `tether.py PARENT_PID PROGRAM ARGUMENT...`: not a preexec_fn, which is unsafe beside threads.
"""

import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main() -> None:
    parent, program, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it ended before the line above took effect
        os._exit(1)
    os.execv(program, [program, *arguments])  # noqa: S606 - the point of it


if __name__ == "__main__":
    main()
