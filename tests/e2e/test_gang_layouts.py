"""Gangs that deal out passes or tokens, through Ray, make what one rank makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.recipes import find_recipe
from jobs.render import render_tables
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.probe import read_frames
from pipeline.recipe import Recipe
from pipeline.store import ObjectStore
from tests.support.command import write_table
from tests.support.pools import keep_gangs
from tests.support.reporters import Silent

pytestmark = pytest.mark.timeout(600)

SAME_DB = 60.0
LAYOUTS = {"tensor=2 guidance=2": 21, "context=2": 17}
"""What makes the clips of so many frames."""
GANGS = (
    "gangs=[{name='four', tensor=2, guidance=2, num_cpus=0.5}, "
    "{name='two', context=2, placement='PACK', max_tokens=80, num_cpus=0.5}]"
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The embedded model's, with a gang of each layout; lossless, or H.264 makes its own errors."""
    return find_recipe(overrides=[GANGS, "request.num_inference_steps=4", "finish.crf=0"])


@pytest.fixture(scope="module")
def ledgers(
    ray_cluster: None, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ledger, Ledger]:
    """A clip for each gang, rendered through Ray, twice."""
    folder = tmp_path_factory.mktemp("gangs")
    frames = list(LAYOUTS.values())
    table = write_table(
        folder / "ads.parquet", prompt=["a red ball moving left"] * len(frames), num_frames=frames
    )
    with keep_gangs(recipe, folder / "other"):
        for name in ("out", "again"):
            render_tables([table], str(folder / name), recipe, Silent())
    return Ledger(ObjectStore(folder / "out")), Ledger(ObjectStore(folder / "again"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gang_makes_a_clip_twice_the_same_to_the_byte(
    ledgers: tuple[Ledger, Ledger], layout: str
) -> None:
    one, other = (
        next(each for each in ledger.read_commits() if each.layout == layout) for ledger in ledgers
    )
    assert one.clip_id == other.clip_id
    assert one.video.sha256 == other.video.sha256


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gang_makes_one_ranks_clip(
    ledgers: tuple[Ledger, Ledger], recipe: Recipe, tmp_path: Path, layout: str
) -> None:
    ledger, _ = ledgers
    commits = {each.layout: each for each in ledger.read_commits()}
    assert commits.keys() == LAYOUTS.keys()
    commit = commits[layout]
    assert (commit.num_frames, commit.attempts) == (LAYOUTS[layout], 1)
    alone = Ledger(ObjectStore(tmp_path / "alone"))
    made = LocalRunner(recipe, commit.model_fingerprint, alone).render(
        commit.clip_id, commit.request
    )
    assert isinstance(made, Commit)
    here, there = (
        read_frames(each.store.locate(clip.video.key)).astype(float)
        for each, clip in ((alone, made), (ledger, commit))
    )
    error = np.square(here - there).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= SAME_DB
