"""How long to wait before what failed is tried again."""

from __future__ import annotations

from collections.abc import Iterator

FIRST_S, LONGEST_S = 1.0, 60.0


def pauses() -> Iterator[float]:
    """Yield seconds for ever: each pause twice the last, up to a minute."""
    pause_s = FIRST_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_S)
