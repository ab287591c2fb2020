"""How a run goes, on a terminal as it changes and elsewhere in plain lines."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from jobs.plan import PlannedCall
from jobs.progress import ConsoleReporter
from pipeline.documents import Commit
from tests.support.outputs import failure
from tests.support.tables import RECIPE, plan_columns

CLIPS, REJECTED, FAILED = 600, 1100, 505
DAY_S = 24 * 60 * 60.0


@pytest.mark.parametrize(
    ("ended", "left"),
    [
        (0, "1:00:00"),
        (1, "1:00:00"),
        (CLIPS // 2, "0:37:30"),
        (CLIPS - 1, "7.5 s"),
        (CLIPS, "0.0 s"),
    ],
)
def test_steps_that_nobody_will_make_take_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: int, left: str
) -> None:
    """A fifth of them is made in a quarter of an hour, whichever clips have ended meanwhile."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("jobs.progress.time", clock)
    console = Console(file=(text := io.StringIO()), width=80)
    plan = plan_columns(tmp_path, prompt=[f"take {number}" for number in range(CLIPS)])
    requests = plan.requests(set())
    steps = sum(each.num_inference_steps for each in requests.values())
    with ConsoleReporter(console, pytest.fail) as reporter:
        reporter.planned(PlannedCall(RECIPE, "f" * 64, plan), 0, requests, 1)
        reporter.stepped(1, 2, 2)
        for clip_id in list(requests)[:ended]:
            reporter.ended(Commit.model_construct(clip_id=clip_id))
        clock.monotonic = lambda: DAY_S / 96
        reporter.stepped(1 + steps // 5, 2, 2)
    assert f"ETA {left}" in text.getvalue().splitlines()[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_counts_rate_and_time_left_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("jobs.progress.time", clock)
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal)
    prompts = [*[f"take {number}" for number in range(CLIPS)] * 2, *[None] * REJECTED]
    plan = plan_columns(tmp_path, prompt=prompts)
    requests = plan.requests(set())
    with ConsoleReporter(console, pytest.fail) as reporter:
        reporter.planned(PlannedCall(RECIPE, "f" * 64, plan), 0, requests, 1)
        reporter.stepped(0, 0, 2)
        reporter.stepped(1, 2, 2)
        for clip_id in list(requests)[:FAILED]:
            reporter.ended(failure(clip_id))
        clock.monotonic = lambda: DAY_S
        reporter.stepped(4801, 2, 2)  # in a day
    shown = Text.from_ansi(text.getvalue()).plain
    words = ["0.1 steps/s, ETA 7:36:00", f"{2 * FAILED} failed, {REJECTED} rejected"]
    if terminal:
        words += [f" {2 * FAILED}/{2 * CLIPS} ", "rendering"]
    else:
        words.append(f"0/{2 * CLIPS} rows done")
        assert "\x1b" not in text.getvalue()
    last = shown.splitlines()[-4:]
    assert [word for word in words if not any(word in line for line in last)] == []
