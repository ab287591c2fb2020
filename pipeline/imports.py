"""`quick_imports`: torch and diffusers are thousands of modules, and take seconds to import."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Generator[None]:
    """Look for no garbage meanwhile, nor ever in what is there at the end.

    What is imported stays; it would be looked through again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
