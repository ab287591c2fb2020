"""`Forecast`: after how long a gang may have a clip that waits, by what is before it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from cluster.answers import ClipProgress
from cluster.schedule import Turn
from pipeline.request import RenderRequest

UNTIMED_S = 1.0
"""What a clip counts for while none has made a step: who has more before them may ask later."""


@dataclass(frozen=True)
class UrgentClip:
    """A clip that isn't made yet, and that somebody waits for."""

    request: RenderRequest
    turn: Turn
    progress: ClipProgress | None = None
    """None: no gang has it."""


class Forecast:
    """Keeps in mind what a step took of the clip that was last seen to make one."""

    def __init__(self) -> None:
        """Have seen none."""
        self._pace = 0.0
        """Seconds for a unit of `RenderRequest.work`."""

    def find_wait_s(self, clip: UrgentClip, clips: Iterable[UrgentClip], gangs: int) -> float:
        """Return after how many seconds one of the gangs may have a clip.

        `clips`, in the order in which they were asked for, has it, too. Owners take turns, as in
        `cluster.schedule`; batches give way, so gangs that have theirs count as free.
        """
        waiting = list[UrgentClip]()
        free_s = list[float]()  # after how long each gang is
        for each in clips:
            if each.progress and each.progress.step_s:
                steps = each.request.num_inference_steps
                self._pace = each.progress.step_s * steps / each.request.work
            if each.progress:
                free_s.append(each.progress.left_s or self._guess_s(each))
            else:
                waiting.append(each)
        free_s += [0.0] * (max(gangs, 1) - len(free_s))
        heapq.heapify(free_s)
        for each in _find_before(clip, waiting):
            heapq.heapreplace(free_s, free_s[0] + self._guess_s(each))
        return free_s[0]

    def _guess_s(self, clip: UrgentClip) -> float:
        return self._pace * clip.request.work or UNTIMED_S


def _find_before(clip: UrgentClip, waiting: list[UrgentClip]) -> list[UrgentClip]:
    """Return those that have their turn first: its owner's, and of each other owner one more."""
    waiting = sorted(waiting, key=lambda each: -each.turn.priority)
    mine = [each for each in waiting if each.turn.owner == clip.turn.owner]
    before = list(takewhile(lambda each: each is not clip, mine))
    most = len(before) + 1
    turns = Counter[str]()
    for each in waiting:
        if each.turn.owner != clip.turn.owner and turns[each.turn.owner] < most:
            turns[each.turn.owner] += 1
            before.append(each)
    return before
