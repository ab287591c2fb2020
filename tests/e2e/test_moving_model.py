"""A hub's main that moves on while a run starts, or in its midst, changes nothing of that run."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import ExitCode
from jobs.recipes import find_recipe
from pipeline.ledger import Ledger
from pipeline.model import resolve_checkpoint
from pipeline.store import ObjectStore
from tests.support.command import QUICK, rushes, start_rushes, wait_until, write_table
from tests.support.hub import make_hub

pytestmark = pytest.mark.timeout(600)
RUN_S = 180


def test_what_renders_is_what_the_clips_are_named_by(tmp_path: Path) -> None:
    model = find_recipe().model
    hub = make_hub(tmp_path, "acme/tiny", resolve_checkpoint(model))
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    call = ("render", write_table(tmp_path / "ads.parquet", prompt=["a red ball"]), *QUICK)
    moved = (*call, "-o", "moved", "--set", "model.checkpoint=acme/tiny")
    with start_rushes(*moved, cwd=tmp_path, **offline) as run:
        wait_until((tmp_path / "moved" / "run.json").exists, RUN_S, "the model is found")
        hub.move()
        assert run.wait(RUN_S) == ExitCode.OK, run.communicate()
    embedded = rushes(*call, "-o", "embedded", cwd=tmp_path)
    assert embedded.returncode == ExitCode.OK, embedded.stderr
    (one,), (other,) = (
        Ledger(ObjectStore(tmp_path / name)).read_commits() for name in ("moved", "embedded")
    )
    assert one.clip_id == other.clip_id
    assert one.video.sha256 == other.video.sha256
