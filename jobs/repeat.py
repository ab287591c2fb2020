"""`repeated`: something that is done again and again while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def repeated(work: Callable[[], None], every_s: float, name: str) -> Generator[None]:
    """Do `work` every so many seconds of the block, in a thread `name`; not once it has ended."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s):
            work()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
