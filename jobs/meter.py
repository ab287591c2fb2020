"""`RunMeter`: how a run goes, for whoever watches: told for as long as it lives."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from pipeline.documents import Commit, Failure
from pipeline.request import RenderRequest


class RunMeter:
    """Counts a run's clips, and the steps that are left of them."""

    def __init__(self, requests: dict[str, RenderRequest]) -> None:
        """Begin with a run's clips, by id, of which none has its end."""
        self._requests = requests
        self._counts = {"committed": 0, "failed": 0, "remaining": len(requests)}
        self._steps_left = sum(each.num_inference_steps for each in requests.values())

    def follow(self, outcomes: Iterator[Commit | Failure]) -> Iterator[Commit | Failure]:
        """Count each clip's end and pass it on."""
        for outcome in outcomes:
            self._counts["remaining"] -= 1
            self._counts["committed" if isinstance(outcome, Commit) else "failed"] += 1
            self._steps_left -= self._requests[outcome.clip_id].num_inference_steps
            yield outcome

    @contextmanager
    def told(self) -> Generator[None]:
        """Export it for the block, again and again: an hour may pass between two clips' ends."""
        from cluster import metrics

        over = threading.Event()

        def tell() -> None:
            metrics.measure_run(self._counts, self._steps_left)

        def repeat() -> None:
            while not over.wait(metrics.MEASURE_S):
                tell()

        tell()
        thread = threading.Thread(target=repeat, name="meter", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            tell()
