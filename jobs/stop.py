"""What ends a run before its time, as exceptions that it can heed: SIGTERM, SIGHUP, Ctrl-C.

SIGTERM: Kubernetes or a spot market wants the machine back, and gives us seconds. SIGHUP: the
terminal has gone.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Literal

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
LAST_WORDS = "stopped by {}; the same command goes on from here"


class StopSignal(KeyboardInterrupt):
    """A first SIGTERM or SIGHUP came: which one it says."""


@contextmanager
def stop_signals(say: Callable[[str], None] | None = None) -> Generator[None]:
    """Raise StopSignal in this thread, the main one, at a first SIGTERM or SIGHUP.

    Later ones are ignored; SIGHUP always is where it was before, as under nohup. Ctrl-C raises
    KeyboardInterrupt, each time. What is raised where Python passes over it, as in a callback, is
    raised again.

    `say` is told where that takes too long and the process ends by itself. Elsewhere than in a main
    thread, signals are somebody else's.
    """
    global _signals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook = sys.unraisablehook
    outer, _signals = _signals, _Signals(say or _complain, hook)
    before = {number: signal.getsignal(number) for number in (*_STOPS, signal.SIGINT)}
    sys.unraisablehook = _signals.pass_over
    signal.signal(signal.SIGTERM, _signals.stop)
    if before[signal.SIGHUP] != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _signals.stop)
    _signals.is_deaf = before[signal.SIGINT] == signal.SIG_IGN
    signal.signal(signal.SIGINT, _signals.interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        _signals = outer


def find_stop() -> Literal["SIGTERM", "SIGHUP"] | None:
    """Return which signal of them came first; what it broke into may have raised anything."""
    return _signals.came if _signals else None


def break_off() -> None:
    """Raise KeyboardInterrupt in the main thread, also where Ctrl-C isn't heard, as after `&`."""
    if _signals:
        _signals.send_interrupt()
    else:
        _thread.interrupt_main()


_STOPS = (signal.SIGTERM, signal.SIGHUP)


class _Signals:
    """What came in a block of `stop_signals`, and what to do about it."""

    def __init__(self, say: Callable[[str], None], hook: Callable[[Any], Any]) -> None:
        self.came: Literal["SIGTERM", "SIGHUP"] | None = None
        self.is_deaf = False
        """Whether Ctrl-C is to be ignored."""
        self._is_ours = False
        """Whether the next SIGINT comes from here."""
        self._say = say
        self._hook = hook

    def stop(self, number: int, frame: FrameType | None) -> None:
        # What is raised in a compiled module's own beginning comes out as some other error, or not
        # at all, and leaves half a module behind; in logging, it leaves a lock held, for ever if
        # that is as a process forks. They are waited for.
        if _is_delicate(frame):
            _send_soon(number)
            return
        for each in _STOPS:
            signal.signal(each, signal.SIG_IGN)
        self.came = "SIGHUP" if number == signal.SIGHUP else "SIGTERM"
        if number == signal.SIGHUP:
            _leave_terminal()
        if any(code.co_qualname in UNSAVED for code in _find_calls(frame)):
            hurry = threading.Timer(HURRY_S, self._end)
            hurry.daemon = True
            hurry.start()
        raise StopSignal(self.came)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.is_deaf and not self._is_ours:
            return
        if _is_delicate(frame):
            self._is_ours = True
            _send_soon(number)
            return
        self._is_ours = False
        raise StopSignal(self.came) if self.came else KeyboardInterrupt

    def send_interrupt(self) -> None:
        self._is_ours = True
        _send_soon(signal.SIGINT)

    def pass_over(self, what: Any) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            self.send_interrupt()
        else:
            self._hook(what)

    def _end(self) -> None:
        try:
            self._say(LAST_WORDS.format(self.came))
        finally:
            os._exit(STOPPED)


_signals: _Signals | None = None


def _leave_terminal() -> None:
    """Have what is still said go nowhere, where a terminal showed it: it takes no more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for shown in (1, 2):
        if os.isatty(shown):
            os.dup2(nowhere, shown)
    os.close(nowhere)


def _send_soon(number: int) -> None:
    main = threading.main_thread().ident or 0
    again = threading.Timer(AGAIN_S, signal.pthread_kill, (main, number))
    again.daemon = True
    again.start()


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
