"""Who steps back where processes share cores, as all of a run's do on a machine without a GPU.

Ranks on CPUs do, behind encode and develop: those that run ahead of develop leave it alone with the
queue at the end, and cores idle. Ray starts its workers at a niceness of 15, of 19 at most: a step
back leaves 0.4 of a core's share.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

STEP_BACK = 4
THREADS = Path("/proc/self/task")
"""A folder for each thread of this process, by its number: on Linux alone."""

_T = TypeVar("_T")


def step_back() -> None:
    """Let others go first; what is started from here on, too. Nobody may take it back.

    Every thread of this process: torch's, which compute, are there before this is called, and on
    Linux each has a niceness of its own.
    """
    if not THREADS.is_dir():
        os.nice(STEP_BACK)
        return
    for thread in THREADS.iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            _step_back(int(thread.name))


def _step_back(thread: int = 0) -> None:
    """Let others go before one thread: the caller, if none is named."""
    niceness = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, niceness + STEP_BACK)


def load_stepping_back(load: Callable[[], _T]) -> _T:
    """Return what `load` returns, run meanwhile behind the processes that a first step waits for.

    In a thread of its own, which on Linux alone has a niceness of its own.
    """
    with ThreadPoolExecutor(
        1, "loader", initializer=_step_back if sys.platform == "linux" else None
    ) as loader:
        return loader.submit(load).result()
