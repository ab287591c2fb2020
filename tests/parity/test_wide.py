"""Layouts of more ranks: all three axes at once, and more ranks that share tokens than two."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.parallel.layout import ParallelLayout
from tests.parity.test_layouts import BOUND
from tests.support.families.base import randomize
from tests.support.layouts import WIDE_LAYOUTS, WIDE_NAMES, denoise_everywhere, differences

CASES = [
    pytest.param(name, layout, id=f"{layout}-{name}")
    for layout in WIDE_LAYOUTS
    for name in WIDE_NAMES
]


@pytest.fixture(scope="module")
def made(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each rank made of each family in each layout."""
    out = tmp_path_factory.mktemp("wide")
    folders = {name: checkpoint_of(name) for name in WIDE_NAMES}
    denoise_everywhere(folders, out, layouts=WIDE_LAYOUTS)
    return out


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_more_ranks_equal_one_process(made: Path, name: str, layout: ParallelLayout) -> None:
    found = differences(made, name, layout)
    assert found["forward"] <= BOUND
    assert found["latents"] <= BOUND


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_more_ranks_share_tokens_and_passes(made: Path, name: str, layout: ParallelLayout) -> None:
    alone = torch.load(made / f"{name}.alone.pt")
    shared = [torch.load(made / f"{name}.{layout}.{rank}.pt") for rank in range(layout.ranks)]
    assert sum(each["tokens"] for each in shared) == alone["tokens"] * layout.ranks / layout.context
    for each in shared:
        assert abs(each["tokens"] - alone["tokens"] / layout.context) < layout.context
        assert (each["calls"] < alone["calls"]) == (layout.guidance > 1)


def test_heads_that_do_not_divide(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Of three heads, one of two ranks that share tokens attends with two."""
    from diffusers import WanTransformer3DModel

    folder = shutil.copytree(checkpoint_of("wan21"), tmp_path / "wan21")
    config = dict(WanTransformer3DModel.load_config(folder / "transformer"))
    model = WanTransformer3DModel.from_config({**config, "num_attention_heads": 3})
    randomize(model, seed=5).save_pretrained(folder / "transformer")
    layout = ParallelLayout(context=2)
    denoise_everywhere({"wan21": folder}, tmp_path, layouts=[layout])
    found = differences(tmp_path, "wan21", layout)
    assert found["forward"] <= BOUND
    assert found["latents"] <= BOUND
