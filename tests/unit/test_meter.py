"""How a run goes is told for as long as it lives, though nothing of it changes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster import metrics
from jobs.meter import RunMeter
from pipeline.documents import Commit
from pipeline.request import RenderRequest
from tests.support.outputs import failure
from tests.support.tables import plan_columns

TIMES, WAIT_S = 3, 10.0
STEPS = 16


class Told:
    """What was told of a run, in place of Ray's gauges."""

    def __init__(self) -> None:
        self.values: list[tuple[dict[str, int], int]] = []
        self.often = threading.Event()

    def measure_run(self, counts: dict[str, int], steps_left: int) -> None:
        self.values.append((dict(counts), steps_left))
        if len(self.values) >= TIMES:
            self.often.set()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(metrics, "measure_run", told.measure_run)
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
    with RunMeter(requests).told():
        assert told.often.wait(WAIT_S)
    nothing = {"committed": 0, "failed": 0, "remaining": 3}, 3 * STEPS
    assert all(each == nothing for each in told.values)
    assert "meter" not in {each.name for each in threading.enumerate()}


def test_its_last_counts_are_told(told: Told, requests: dict[str, RenderRequest]) -> None:
    first, second, _ = requests
    meter = RunMeter(requests)
    with meter.told():
        ends = [failure(first), Commit.model_construct(clip_id=second)]
        assert list(meter.follow(iter(ends))) == ends
    assert told.values[-1] == ({"committed": 1, "failed": 1, "remaining": 1}, STEPS)
