"""`Tally`: an output's rows and commits, counted part by part.

Of a clip only its numbers are kept, so that a report of a million rows fits in memory.
"""
# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import heapq
import math
from array import array
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate

import pyarrow as pa

from jobs.report.documents import ClipNumbers
from jobs.report.labels import Breaker
from jobs.report.reasons import Reasons
from pipeline.columns import STAGES
from pipeline.counts import RowCounter
from pipeline.documents import Commit, Status, row_status
from pipeline.ledger import Ledger
from pipeline.plan import name_row
from pipeline.runs import RunRecord

CLIPS_SHOWN = 10


class _Top:
    """The few clips that have the most of something; ties by id."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, ...], str, ClipNumbers]] = []

    def add(self, rank: tuple[float, ...], clip: ClipNumbers) -> None:
        entry = (rank, clip.clip_id, clip)
        if len(self._heap) < CLIPS_SHOWN:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def listed(self) -> tuple[ClipNumbers, ...]:
        return tuple(clip for _, _, clip in sorted(self._heap, key=lambda each: each[:2])[::-1])


class Tally:
    """Counts an output's rows, a table's part at a time, in the order of the tables."""

    def __init__(self, ledger: Ledger, runs: Sequence[RunRecord], breaker: Breaker) -> None:
        """List what the output holds; `runs` are its own, the first one first."""
        self.failures, self.rejects = Reasons(), Reasons()
        self.num_retried = 0
        self.device_seconds, self.video_s = array("d"), array("d")
        """Of each committed clip, as are:"""
        self.committed_at = array("d")
        """In seconds since 1970."""
        self.stage_s = {stage: array("d") for stage in STAGES}
        """NaN where a clip's commit says nothing of a stage."""
        self.run_clips = Counter[int]()
        """Commits by the place of their run in `runs`; of none of them: -1."""
        self.run_device_seconds = defaultdict[int, float](float)
        self._slowest, self._retried = _Top(), _Top()
        self._ledger, self._breaker = ledger, breaker
        self._committed, self._failed = ledger.committed_ids(), ledger.failed_ids()
        self.rows = RowCounter(self._committed)
        self._earlier = ledger.count_attempts(self._committed & self._failed)
        self._places = {each.epoch: place for place, each in enumerate(runs)}
        self._starts = list(accumulate((each.started_at.timestamp() for each in runs), max))

    @property
    def slowest(self) -> tuple[ClipNumbers, ...]:
        """The committed clips with the most device-seconds."""
        return self._slowest.listed()

    @property
    def retried(self) -> tuple[ClipNumbers, ...]:
        """The committed clips with the most attempts, of those that took more than one."""
        return self._retried.listed()

    def add_part(self, table: str, rows: pa.Table) -> None:
        """Count some rows of a planned table, which come after those counted before."""
        names = ("row", "id", "clip_id", "reject")
        numbers, ids, clip_ids, rejects = (rows[name].to_pylist() for name in names)
        labels = self._breaker.read(rows)
        wanted = {key for key, reject in zip(clip_ids, rejects, strict=True) if reject is None}
        lost = (wanted & self._failed) - self._committed
        failures = {
            each.clip_id: each for each in (self._ledger.latest_failures(lost) if lost else ())
        }

        def name(place: int) -> str:
            if clip_ids[place] is None and ids[place] is None:
                return f"{table} row {numbers[place]}"
            return name_row(ids[place], clip_ids[place])

        fresh, states = dict[str, int](), list[Status]()
        for place, (clip_id, reject) in enumerate(zip(clip_ids, rejects, strict=True)):
            status = row_status(clip_id, reject, self._committed, self._failed)
            states.append(status)
            self._breaker.add_row(labels, place, status)
            if status == "rejected":
                self.rejects.add(None, reject, name(place))
            elif status == "failed":
                failure = failures[clip_id]
                self.failures.add(failure.stage, failure.reason, name(place))
            elif status == "committed" and clip_id not in self.rows.clips:
                fresh.setdefault(clip_id, place)
        self.rows.add_part(table, rows, states)
        for commit in self._ledger.read_commits(fresh):
            place = fresh[commit.clip_id]
            self._add_clip(commit, name(place))
            self._breaker.add_clip(labels, place, commit.duration_s, commit.device_seconds)

    def add_others(self) -> None:
        """Count, for the runs alone, the commits that no row asks for."""
        for commit in self._ledger.read_commits(self._committed - self.rows.clips):
            self._add_to_run(commit)

    def _add_clip(self, commit: Commit, row_id: str) -> None:
        self.device_seconds.append(commit.device_seconds)
        self.video_s.append(commit.duration_s)
        self.committed_at.append(commit.committed_at.timestamp())
        for stage, seconds in self.stage_s.items():
            seconds.append(commit.timings.get(stage, math.nan))
        self._add_to_run(commit)
        clip = ClipNumbers(
            id=row_id,
            clip_id=commit.clip_id,
            video=commit.video.key,
            denoise_s=commit.timings.get("denoise", 0.0),
            device_seconds=commit.device_seconds,
            attempts=commit.attempts + self._earlier[commit.clip_id],
        )
        self._slowest.add((clip.device_seconds,), clip)
        if clip.attempts > 1:
            self.num_retried += 1
            self._retried.add((clip.attempts, clip.device_seconds), clip)

    def _add_to_run(self, commit: Commit) -> None:
        run = self._places.get(commit.epoch) if commit.epoch is not None else None
        if run is None:  # clocks differ from machine to machine
            run = bisect(self._starts, commit.committed_at.timestamp()) - 1
        self.run_clips[run] += 1
        self.run_device_seconds[run] += commit.device_seconds
