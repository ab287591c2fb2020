"""SIGTERM: Kubernetes or a spot market wants the machine back, and gives us seconds."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


class StopSignal(KeyboardInterrupt):
    """A first SIGTERM came."""


@contextmanager
def stop_signals() -> Generator[None]:
    """Raise StopSignal in this thread, the main one, at a first SIGTERM; later ones are ignored.

    Elsewhere than in a main thread, signals are somebody else's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    heed_stop_signals()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def heed_stop_signals() -> None:
    """Do so again inside `stop_signals`: whoever starts Ray has Ray's own handler from then on."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def has_stop_come() -> bool:
    """Return whether a first SIGTERM came; what it broke into may have raised anything."""
    return signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise StopSignal
