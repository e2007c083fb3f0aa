"""The number of this process, which only a fork changes: to ask the kernel with each request is not free."""

from __future__ import annotations

import os
from functools import cache


@cache
def number() -> int:
    """As os.getpid()."""
    return os.getpid()


os.register_at_fork(after_in_child=number.cache_clear)
