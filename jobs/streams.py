"""Standard streams where whoever started this has closed them, as some schedulers do."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def open_streams() -> None:
    """Have each standard stream that is closed lead nowhere.

    What is opened next would else take its number, and be written to by all who complain there.
    """
    nowhere = Path(os.devnull)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(nowhere, os.O_RDWR), True)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, nowhere.open("w" if number else "r", encoding="utf-8"))
