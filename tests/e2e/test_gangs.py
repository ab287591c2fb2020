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
from tests.support.command import wait_until, write_table

pytestmark = pytest.mark.timeout(600)

NUM_CLIPS, LONG, SHORT = 4, 17, 5
SAME_DB = 60.0
"""Decoded frames of two layouts differ by less, counted over all clips."""


def find_busy_ranks() -> list[int]:
    """Return the process ids of the ranks that are making steps, in the order of their start."""
    actors = [each for each in state.actors().values() if each["ActorClassName"] == "RankWorker"]
    ranks = [psutil.Process(each["Pid"]) for each in actors if each["State"] == "ALIVE"]
    return sorted(each.pid for each in ranks if each.cmdline()[0] == "ray::RankWorker.advance")


def find_pair() -> list[int] | None:
    """Return the busy ranks once they are two."""
    ranks = find_busy_ranks()
    return ranks if len(ranks) == 2 else None


class Disturber:
    """A reporter that sends a signal to a rank of two once a clip of either size is committed."""

    def __init__(self, victim: int, number: signal.Signals) -> None:
        self.victim, self.number = victim, number
        self.sizes: set[int] = set()
        self.pid = 0

    def planned(self, *what: Any) -> None: ...

    def stepped(self, *what: int) -> None: ...

    def noted(self, text: str) -> None: ...

    def ended(self, outcome: Commit | Failure) -> None:
        assert isinstance(outcome, Commit), outcome
        self.sizes.add(outcome.num_frames)
        if not self.pid and self.sizes == {SHORT, LONG}:
            ranks = wait_until(find_pair, 60, "both ranks of the pair at work")
            self.pid = ranks[self.victim]
            os.kill(self.pid, self.number)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_table(
        tmp_path_factory.mktemp("table") / "ads.parquet",
        prompt=[f"a red ball moving left, take {number}" for number in range(NUM_CLIPS)],
        num_frames=[LONG] * (NUM_CLIPS - 1) + [SHORT],
    )


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The embedded model on a pair of ranks, and one rank for short clips; watched closely.

    Files are lossless: else H.264 turns a rounding error into another choice of its own.
    """
    gangs = "gangs=[{name='pair', tensor=2}, {name='single', max_tokens=32}]"
    return find_recipe(
        overrides=[
            gangs,
            "request.num_inference_steps=8",
            "pool.step_timeout_min_s=10",
            "finish.crf=0",
        ]
    )


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
    layouts = {(each.num_frames, each.layout, each.gang) for each in commits}
    assert layouts == {(LONG, "tensor=2", "pair-0"), (SHORT, "1", "single-0")}


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
