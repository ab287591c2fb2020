"""How a run goes, on a terminal as it changes and elsewhere in plain lines."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from jobs.pace import Pace
from jobs.plan import PlannedCall
from jobs.progress import ConsoleReporter
from tests.support.outputs import failure
from tests.support.tables import RECIPE, plan_columns

CLIPS, REJECTED, FAILED = 600, 1100, 505
DAY_S = 24 * 60 * 60.0


@pytest.mark.parametrize("terminal", [True, False])
def test_counts_rate_and_time_left_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("jobs.progress.time", clock)
    pace = Pace()
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal)
    prompts = [*[f"take {number}" for number in range(CLIPS)] * 2, *[None] * REJECTED]
    plan = plan_columns(tmp_path, prompt=prompts)
    requests = plan.requests(set())
    with ConsoleReporter(console, pytest.fail) as reporter:
        reporter.planned(PlannedCall(RECIPE, "f" * 64, plan), 0, requests, 1)
        reporter.stepped(0, 0, 2, pace)
        pace.look(0.0, 1, 9599)
        reporter.stepped(1, 2, 2, pace)
        for clip_id in list(requests)[:FAILED]:
            reporter.ended(failure(clip_id))
        clock.monotonic = lambda: DAY_S
        pace.look(DAY_S, 4801, 4799)  # half of the steps, in a day
        reporter.stepped(4801, 2, 2, pace)
    shown = Text.from_ansi(text.getvalue()).plain
    words = ["0.1 steps/s, ETA 23:59:42", f"{2 * FAILED} failed, {REJECTED} rejected"]
    if terminal:
        words += [f" {2 * FAILED}/{2 * CLIPS} ", "rendering"]
    else:
        words.append(f"0/{2 * CLIPS} rows done")
        assert "\x1b" not in text.getvalue()
    last = shown.splitlines()[-4:]
    assert [word for word in words if not any(word in line for line in last)] == []
