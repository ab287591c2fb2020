"""`RunMeter`: how a run goes, for whoever watches: told for as long as it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.pace import Pace
from jobs.repeat import repeated
from pipeline.documents import Commit, Failure
from pipeline.request import RenderRequest

if TYPE_CHECKING:
    from cluster.answers import ClipProgress


class RunMeter:
    """Counts a run's clips, and how long its steps will take that are left."""

    def __init__(self, output: str, requests: dict[str, RenderRequest]) -> None:
        """Begin with a run's clips, by id, of which none has its end."""
        self.output = output
        self.pace = Pace()
        """Of denoising steps, from the first ones on."""
        self._counts = {"committed": 0, "failed": 0, "remaining": len(requests)}
        self._left = {key: request.num_inference_steps for key, request in requests.items()}
        self._lock = threading.Lock()

    def follow(self, outcomes: Iterator[Commit | Failure]) -> Iterator[Commit | Failure]:
        """Count each clip's end and pass it on."""
        from cluster import metrics

        for outcome in outcomes:
            is_committed = isinstance(outcome, Commit)
            with self._lock:
                self._left.pop(outcome.clip_id, None)
            self._counts["remaining"] -= 1
            self._counts["committed" if is_committed else "failed"] += 1
            metrics.count_end(is_committed=is_committed)
            yield outcome

    def stepped(self, steps_done: int, clips: Mapping[str, ClipProgress]) -> None:
        """Take the steps that gangs have made in this run, and how far their clips are.

        A clip that goes on from where it was saved has fewer left than it asks for.
        """
        with self._lock:
            for clip_id in clips.keys() & self._left.keys():
                at = clips[clip_id]
                self._left[clip_id] = at.num_steps - at.step
            left = sum(self._left.values())
        if steps_done:
            self.pace.look(time.monotonic(), steps_done, left)

    @contextmanager
    def told(self) -> Generator[None]:
        """Export it for the block, again and again: an hour may pass between two clips' ends."""
        from cluster import metrics

        def tell() -> None:
            metrics.measure_run(self.output, self._counts, self.pace.left_s)

        tell()
        try:
            with repeated(tell, metrics.MEASURE_S, "meter"):
                yield
        finally:
            tell()
