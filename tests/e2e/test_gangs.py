"""A gang of two ranks renders what one rank renders, and lives through the loss of either.

Beside them, a clip that kills its gang every time: that costs itself alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
from pipeline.runs import read_runs
from pipeline.store import ObjectStore
from tests.support.command import wait_until, write_table
from tests.support.leaks import check_leaks
from tests.support.pools import keep_gangs

pytestmark = pytest.mark.timeout(600)

LONG, SHORT = 17, 5
FRAMES = [LONG] * 3 + [SHORT] * 2
POISON = 4
"""The row whose gang is killed every time. Its many steps make it the first of the short ones."""
STEPS = [8] * POISON + [100]
NUM_CLIPS = len(FRAMES)
MAX_ATTEMPTS = 2
SAME_DB = 60.0
"""Decoded frames of two layouts differ by less, counted over all clips."""


def find_busy_ranks(gang: str = "pair-0") -> list[int]:
    """Return the process ids of a gang's ranks that are making steps, in the ranks' order."""
    actors = [each for each in state.actors().values() if f"/{gang}/" in each["Name"]]
    actors.sort(key=lambda each: int(each["Name"].rpartition("/")[2]))
    busy: list[int] = []
    for pid in (each["Pid"] for each in actors if each["State"] == "ALIVE"):
        with suppress(psutil.Error, IndexError):
            if psutil.Process(pid).cmdline()[0] == "ray::RankWorker.advance":
                busy.append(pid)
    return busy


def find_pair() -> list[int] | None:
    """Return the busy ranks once they are two."""
    ranks = find_busy_ranks()
    return ranks if len(ranks) == 2 else None


def poison() -> None:
    """Kill the rank for short clips as often as a clip may lose one, each time at work."""
    killed = set[int]()

    def find_next() -> set[int]:
        return set(find_busy_ranks("single-0")) - killed

    while len(killed) < MAX_ATTEMPTS:
        pid = wait_until(find_next, 120, "a rank for short clips at work").pop()
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)


def count_lost(ledger: Ledger) -> int:
    """Return how many gangs the output's one run lost."""
    (record,) = read_runs(ledger.store)
    return record.gangs_lost


def check_same(ledger: Ledger, other: Ledger) -> None:
    """Check that one clip took two attempts, and that all are the other's, to the byte."""
    assert sorted(each.attempts for each in ledger.read_commits()) == [1] * (NUM_CLIPS - 1) + [2]
    for commit in map(ledger.read_commit, other.committed_ids()):
        assert commit.video.sha256 == other.read_commit(commit.clip_id).video.sha256


Render = Callable[[int, signal.Signals], tuple[Ledger, list[Failure]]]


class Disturber:
    """A reporter that sends a signal to a rank of two once it has made a clip."""

    def __init__(self, victim: int, number: signal.Signals) -> None:
        self.victim, self.number = victim, number
        self.pid = 0
        self.failed: list[Failure] = []

    def planned(self, *what: Any) -> None: ...

    def stepped(self, *what: Any) -> None: ...

    def noted(self, text: str) -> None: ...

    def ended(self, outcome: Commit | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failed.append(outcome)
            return
        if not self.pid and outcome.num_frames == LONG:
            ranks = wait_until(find_pair, 60, "both ranks of the pair at work")
            self.pid = ranks[self.victim]
            os.kill(self.pid, self.number)


@pytest.fixture(scope="module", autouse=True)
def no_leaks(ray_cluster: None) -> Iterator[None]:
    """Look for leaks at the module's end: its runs share gangs, which take long to start."""
    yield
    check_leaks()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_table(
        tmp_path_factory.mktemp("table") / "ads.parquet",
        prompt=[f"a red ball moving left, take {number}" for number in range(NUM_CLIPS)],
        num_frames=FRAMES,
        num_inference_steps=STEPS,
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
            f"pool.max_attempts={MAX_ATTEMPTS}",
            "pool.tenant_limit_s=600",
            "pool.step_timeout_min_s=10",
            "finish.crf=0",
        ]
    )


@pytest.fixture(scope="module")
def render(
    no_leaks: None, recipe: Recipe, table: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Render]:
    """Render the table on two ranks, one of which is disturbed."""

    def run(victim: int, number: signal.Signals) -> tuple[Ledger, list[Failure]]:
        folder = tmp_path_factory.mktemp("output")
        disturber = Disturber(victim, number)
        result = render_tables([table], str(folder), recipe, disturber)
        assert disturber.pid
        assert not psutil.pid_exists(disturber.pid)
        assert (result.rendered, result.failed) == (
            NUM_CLIPS - len(disturber.failed),
            len(disturber.failed),
        )
        return Ledger(ObjectStore(folder)), disturber.failed

    with keep_gangs(recipe, tmp_path_factory.mktemp("other")):
        yield run


@pytest.fixture(scope="module")
def poisoned(render: Render) -> tuple[Ledger, list[Failure]]:
    with ThreadPoolExecutor(1) as threads:
        poisoning = threads.submit(poison)
        outcome = render(1, signal.SIGKILL)
        poisoning.result(10)
    return outcome


@pytest.fixture(scope="module")
def killed(poisoned: tuple[Ledger, list[Failure]]) -> Ledger:
    return poisoned[0]


def test_a_gang_that_loses_a_rank_is_rebuilt(killed: Ledger) -> None:
    commits = list(killed.read_commits())
    assert sorted(each.attempts for each in commits) == [1] * (NUM_CLIPS - 2) + [2]
    layouts = {(each.num_frames, each.layout, each.gang) for each in commits}
    assert layouts == {(LONG, "tensor=2", "pair-0"), (SHORT, "1", "single-0")}
    assert count_lost(killed) == 1 + MAX_ATTEMPTS


def test_a_gang_that_loses_its_leader_is_rebuilt_and_makes_the_same_bytes(
    killed: Ledger, render: Render
) -> None:
    led, failed = render(0, signal.SIGKILL)
    assert failed == []
    assert count_lost(led) == 1
    check_same(led, killed)


def test_a_clip_that_kills_its_gang_every_time_costs_itself_alone(
    poisoned: tuple[Ledger, list[Failure]],
) -> None:
    ledger, (failure,) = poisoned
    assert ledger.read_output()
    assert failure.stage == "denoise"
    assert failure.attempts == MAX_ATTEMPTS
    assert failure.reason == f"lost {MAX_ATTEMPTS} gangs"
    assert len(failure.chain) == MAX_ATTEMPTS + 1
    assert all("single-0" in each for each in failure.chain[:-1])
    assert ledger.count_attempts({failure.clip_id}) == {failure.clip_id: MAX_ATTEMPTS}
    status = ledger.status()
    assert (status.committed, status.failed, status.remaining) == (NUM_CLIPS - 1, 1, 0)


def test_a_gang_with_a_rank_that_hangs_is_rebuilt_and_makes_the_same_bytes(
    killed: Ledger, render: Render
) -> None:
    hung, failed = render(1, signal.SIGSTOP)
    assert failed == []
    assert count_lost(hung) == 1
    check_same(hung, killed)


def test_two_ranks_show_what_one_shows(killed: Ledger, recipe: Recipe, tmp_path: Path) -> None:
    alone = Ledger(ObjectStore(tmp_path))
    shared = [each for each in killed.read_commits() if each.layout == "tensor=2"]
    assert len(shared) == NUM_CLIPS - 2
    for commit in shared:
        runner = LocalRunner(recipe, commit.model_fingerprint, alone)
        made = runner.render(commit.clip_id, commit.request)
        assert isinstance(made, Commit)
        here, there = (
            read_frames(ledger.store.locate(each.video.key)).astype(float)
            for ledger, each in ((alone, made), (killed, commit))
        )
        error = np.square(here - there).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) >= SAME_DB
