"""A gang of two ranks renders what one rank renders, and lives through the loss of either."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray._private import state

from jobs.recipes import find_recipe
from jobs.render import render_tables
from pipeline.documents import Commit, Failure
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.probe import read_frames
from pipeline.recipe import Recipe
from pipeline.store import ObjectStore
from tests.support.command import write_table

pytestmark = pytest.mark.timeout(600)

NUM_CLIPS = 3
SAME_DB = 60.0
"""Decoded frames of two layouts differ by less, counted over all clips."""


def find_ranks() -> list[int]:
    """Return the process ids of the living ranks, in the order in which they were made."""
    actors = [each for each in state.actors().values() if each["ActorClassName"] == "RankWorker"]
    return sorted(each["Pid"] for each in actors if each["State"] == "ALIVE")


class Disturber:
    """A reporter that sends a signal to a rank once the first clip is committed."""

    def __init__(self, victim: int, number: signal.Signals) -> None:
        self.victim, self.number = victim, number
        self.pid = 0

    def planned(self, *what: Any) -> None: ...

    def stepped(self, *what: int) -> None: ...

    def ended(self, outcome: Commit | Failure) -> None:
        if not self.pid:
            self.pid = find_ranks()[self.victim]
            os.kill(self.pid, self.number)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    prompts = [f"a red ball moving left, take {number}" for number in range(NUM_CLIPS)]
    return write_table(tmp_path_factory.mktemp("table") / "ads.parquet", prompt=prompts)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The embedded model on one gang of two ranks, watched closely."""
    changes = ("gangs.0.count=1", "gangs.0.tensor=2", "request.num_inference_steps=12")
    return find_recipe(overrides=[*changes, "pool.step_timeout_min_s=10"])


@pytest.fixture(scope="module")
def render(
    ray_cluster: None, recipe: Recipe, table: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, signal.Signals], Ledger]:
    """Render the table on two ranks, one of which is disturbed."""

    def run(victim: int, number: signal.Signals) -> Ledger:
        folder = tmp_path_factory.mktemp("output")
        disturber = Disturber(victim, number)
        result = render_tables([table], str(folder), recipe, disturber)
        assert disturber.pid
        assert not psutil.pid_exists(disturber.pid)
        assert (result.rendered, result.failed) == (NUM_CLIPS, 0)
        return Ledger(ObjectStore(folder))

    return run


@pytest.fixture(scope="module")
def killed(render: Callable[[int, signal.Signals], Ledger]) -> Ledger:
    return render(0, signal.SIGKILL)


def test_a_gang_that_loses_its_first_rank_is_rebuilt(killed: Ledger) -> None:
    commits = list(killed.read_commits())
    assert sorted(each.attempts for each in commits) == [1] * (NUM_CLIPS - 1) + [2]
    assert {each.layout for each in commits} == {"tensor=2"}


def test_a_gang_with_a_rank_that_hangs_is_rebuilt_and_makes_the_same_bytes(
    killed: Ledger, render: Callable[[int, signal.Signals], Ledger]
) -> None:
    hung = render(1, signal.SIGSTOP)
    assert sum(each.attempts for each in hung.read_commits()) == NUM_CLIPS + 1
    for commit in hung.read_commits():
        assert commit.video.sha256 == killed.read_commit(commit.clip_id).video.sha256


def test_two_ranks_show_what_one_shows(killed: Ledger, recipe: Recipe, tmp_path: Path) -> None:
    alone = Ledger(ObjectStore(tmp_path))
    errors: list[float] = []
    for commit in killed.read_commits():
        runner = LocalRunner(recipe, commit.model_fingerprint, alone)
        made = runner.render(commit.clip_id, commit.request)
        assert isinstance(made, Commit)
        here, there = (
            read_frames(ledger.store.locate(each.video.key)).astype(float)
            for ledger, each in ((alone, made), (killed, commit))
        )
        errors.append(float(np.square(here - there).mean()))
    assert 10 * np.log10(255**2 / max(np.mean(errors), 1e-9)) >= SAME_DB
