"""A hub's main that moves on while a run starts changes nothing of that run."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import ExitCode
from jobs.recipes import find_recipe
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.model import resolve_checkpoint
from pipeline.store import ObjectStore
from tests.support.command import QUICK, start_rushes, wait_until, write_table
from tests.support.hub import make_hub

pytestmark = pytest.mark.timeout(600)
RUN_S = 180


def test_what_renders_is_what_the_clips_are_named_by(tmp_path: Path) -> None:
    recipe = find_recipe()
    hub = make_hub(tmp_path, "acme/tiny", resolve_checkpoint(recipe.model))
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball"])
    call = ("render", table, "-o", "out", *QUICK, "--set", "model.checkpoint=acme/tiny")
    with start_rushes(*call, cwd=tmp_path, **offline) as run:
        wait_until((tmp_path / "out" / "run.json").exists, RUN_S, "the model is found")
        hub.move()
        assert run.wait(RUN_S) == ExitCode.OK, run.communicate()
    (commit,) = Ledger(ObjectStore(tmp_path / "out")).read_commits()
    alone = Ledger(ObjectStore(tmp_path / "alone"))
    made = LocalRunner(recipe, commit.model_fingerprint, alone).render(
        commit.clip_id, commit.request
    )
    assert isinstance(made, Commit)
    assert made.video.sha256 == commit.video.sha256
