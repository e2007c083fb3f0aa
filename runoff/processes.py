"""Processes: the number of this one, and the exit code of one that was interrupted.

Only a fork changes the number, and to ask the kernel with each request is not free.
"""

from __future__ import annotations

import os
from functools import cache

# Shells name so what Ctrl-C has ended: 128, and the number of SIGINT.
INTERRUPTED = 130


@cache
def number() -> int:
    """As os.getpid()."""
    return os.getpid()


os.register_at_fork(after_in_child=number.cache_clear)
