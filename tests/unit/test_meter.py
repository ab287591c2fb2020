"""How a run goes is told for as long as it lives, though nothing of it changes."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import metrics
from cluster.answers import ClipProgress
from jobs.meter import RunMeter
from pipeline.documents import Commit
from pipeline.request import RenderRequest
from tests.support.outputs import failure
from tests.support.tables import plan_columns

TIMES, WAIT_S = 3, 10.0
STEPS = 16
OUTPUT = "s3://videos/2026-11-30"


class Told:
    """What was told of a run, in place of Ray's gauges."""

    def __init__(self) -> None:
        self.values: list[tuple[dict[str, int], float | None]] = []
        self.ends = Counter[bool]()
        self.often = threading.Event()

    def count_end(self, *, is_committed: bool) -> None:
        self.ends[is_committed] += 1

    def measure_run(self, output: str, counts: dict[str, int], left_s: float | None) -> None:
        assert output == OUTPUT
        self.values.append((dict(counts), left_s))
        if len(self.values) >= TIMES:
            self.often.set()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(metrics, "measure_run", told.measure_run)
    monkeypatch.setattr(metrics, "count_end", told.count_end)
    monkeypatch.setattr(metrics, "MEASURE_S", 0.001)
    return told


@pytest.fixture
def requests(tmp_path: Path) -> dict[str, RenderRequest]:
    return plan_columns(
        tmp_path, prompt=["a", "b", "c"], num_inference_steps=[STEPS] * 3
    ).requests()


def test_a_run_of_which_nothing_changes_is_told_of(
    told: Told, requests: dict[str, RenderRequest]
) -> None:
    with RunMeter(OUTPUT, requests).told():
        assert told.often.wait(WAIT_S)
    nothing = {"committed": 0, "failed": 0, "remaining": 3}, None
    assert all(each == nothing for each in told.values)
    assert "meter" not in {each.name for each in threading.enumerate()}


def test_its_last_counts_are_told(told: Told, requests: dict[str, RenderRequest]) -> None:
    first, second, _ = requests
    meter = RunMeter(OUTPUT, requests)
    with meter.told():
        ends = [failure(first), Commit.model_construct(clip_id=second)]
        assert list(meter.follow(iter(ends))) == ends
    assert told.values[-1][0] == {"committed": 1, "failed": 1, "remaining": 1}
    assert told.ends == {True: 1, False: 1}


def test_the_time_left_is_told(
    told: Told, requests: dict[str, RenderRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr("jobs.meter.time", clock)
    first, second, _ = requests
    meter = RunMeter(OUTPUT, requests)

    def step(now: float, done: int, **clips: int) -> None:
        clock.monotonic = lambda: now
        at = {"first": first, "second": second}
        meter.stepped(
            done, {at[key]: ClipProgress(step, STEPS, 1.0) for key, step in clips.items()}
        )

    with meter.told():
        step(90.0, 0, second=10)  # one was saved by an earlier run: its steps are not made again
        step(100.0, 2, first=1, second=11)
        step(110.0, 4, first=2, second=12)
        assert meter.pace.left_s == pytest.approx((14 + 4 + STEPS) / 0.2)
        step(130.0, 8, first=6, second=16)
        step(140.0, 10, first=8)  # the second is developed now
        assert meter.pace.left_s == pytest.approx((8 + 0 + STEPS) / 0.2)
        list(meter.follow(iter([failure(first), Commit.model_construct(clip_id=second)])))
        step(150.0, 12)
    assert told.values[-1][1] == pytest.approx(STEPS / 0.2)
