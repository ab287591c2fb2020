"""A model that can't be loaded is a wrong call, also where that shows on the cluster alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.cli import ExitCode
from jobs.recipes import find_recipe
from pipeline.model import resolve_checkpoint
from tests.support.command import ONE_GANG, rushes, write_table

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(("component", "ranks"), [("text_encoder", 1), ("transformer", 2)])
def test_damaged_weights_are_told_and_the_mended_call_has_its_output(
    tmp_path: Path, component: str, ranks: int
) -> None:
    """Whether an actor for texts finds them, or the ranks of a gang, which share the model."""
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball"])
    shutil.copytree(resolve_checkpoint(find_recipe().model), tmp_path / "model")
    (weights,) = (tmp_path / "model" / component).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    call = ("render", table, "-o", "out", *ONE_GANG, "--set", f"gangs.0.tensor={ranks}")
    wrong = rushes(*call, "--set", "model.checkpoint=./model", cwd=tmp_path)
    assert wrong.returncode == ExitCode.USAGE, wrong.stderr
    last = wrong.stderr.splitlines()[-1]
    assert last.startswith(f"rushes: model.checkpoint: cannot load {component} from model: ")
    assert "goes on from here" not in wrong.stdout + wrong.stderr
    mended = rushes(*call, cwd=tmp_path)
    assert mended.returncode == ExitCode.OK, mended.stderr
