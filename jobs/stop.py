"""SIGTERM: Kubernetes or a spot market wants the machine back, and gives us seconds."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType

AGAIN_S = 0.05
DELICATE = ("<frozen importlib", logging.__file__)
"""Files in whose calls nothing is broken off."""
WHOLE = frozenset({"Lease._create"})
"""Nor in these: a lease that was made and not handed on would be held until its time limit."""
UNSAVED = frozenset({"plan_call"})
"""Where there is nothing to save; but threads that fetch a model's files would be waited for."""
HURRY_S = 3.0
STOPPED = 75
"""The exit code."""
LAST_WORDS = "stopped by SIGTERM; the same command goes on from here"


class StopSignal(KeyboardInterrupt):
    """A first SIGTERM came."""


@contextmanager
def stop_signals(say: Callable[[str], None] | None = None) -> Generator[None]:
    """Raise StopSignal in this thread, the main one, at a first SIGTERM; later ones are ignored.

    `say` is told where that takes too long and the process ends by itself. Elsewhere than in a main
    thread, signals are somebody else's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, partial(_stop, say or _complain))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def has_stop_come() -> bool:
    """Return whether a first SIGTERM came; what it broke into may have raised anything."""
    return signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def _stop(say: Callable[[str], None], _: int, frame: FrameType | None) -> None:
    # What is raised in a compiled module's own beginning comes out as some other error, or not at
    # all, and leaves half a module behind; in logging, it leaves a lock held. They are waited for.
    if _is_delicate(frame):
        main = threading.main_thread().ident or 0
        again = threading.Timer(AGAIN_S, signal.pthread_kill, (main, signal.SIGTERM))
        again.daemon = True
        again.start()
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if any(code.co_qualname in UNSAVED for code in _find_calls(frame)):
        hurry = threading.Timer(HURRY_S, _end, (say,))
        hurry.daemon = True
        hurry.start()
    raise StopSignal


def _end(say: Callable[[str], None]) -> None:
    try:
        say(LAST_WORDS)
    finally:
        os._exit(STOPPED)


def _complain(text: str) -> None:
    os.write(2, f"rushes: {text}\n".encode())


def _is_delicate(frame: FrameType | None) -> bool:
    return any(
        code.co_filename.startswith(DELICATE) or code.co_qualname in WHOLE
        for code in _find_calls(frame)
    )


def _find_calls(frame: FrameType | None) -> Iterator[CodeType]:
    while frame:
        yield frame.f_code
        frame = frame.f_back
