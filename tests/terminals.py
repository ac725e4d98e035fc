"""A process whose standard error is a terminal, and what it drew there."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

ROWS, COLUMNS = 40, 120  # without them bars have no room


def on_terminal(command: Sequence[str | Path], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a command with standard error on a terminal; return its exit code, standard output and what was drawn."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    variables = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm", **environment}
    with subprocess.Popen(list(map(str, command)), stderr=theirs, stdout=subprocess.PIPE, env=variables) as ran:
        os.close(theirs)
        drawn = b""
        try:
            while part := os.read(ours, 65536):
                drawn += part
        except OSError:  # the other side has closed
            pass
        os.close(ours)
        assert ran.stdout is not None
        printed = ran.stdout.read()
    return ran.returncode, printed.decode(), drawn.decode()


def plain(drawn: str) -> str:
    """Leave out what moves the cursor and what colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
