"""Tokens dealt out to two ranks: equal shares and unequal ones, with a timestep for each or one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import (
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
)
from diffusers.models import attention_dispatch
from torch import Tensor, nn

from pipeline.parallel import lengths
from pipeline.parallel.layout import ParallelLayout
from pipeline.parallel.place import Place
from tests.support.families.base import randomize, seeded
from tests.support.ranks import run_ranks

BOUND = 1e-5
FRAMES, SIDE = 3, 3
"""Of the clip in tokens: 36, or 45 of a wider one."""
TEXT = 12


def build(name: str) -> Any:
    """Return a tiny transformer, the same in every process."""
    shape: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2}
    shape |= {"in_channels": 8, "out_channels": 8}
    if name == "wan":
        shape |= {"text_dim": 32, "freq_dim": 32, "ffn_dim": 64, "rope_max_seq_len": 32}
        return randomize(WanTransformer3DModel(**shape, patch_size=(1, 1, 1)), 3)
    shape |= {"cross_attention_dim": 64, "caption_channels": 32}
    if name == "ltx":
        return randomize(LTXVideoTransformer3DModel(**shape), 3)
    sound = {"num_attention_heads": 4, "attention_head_dim": 8, "cross_attention_dim": 32}
    sound |= {"in_channels": 16, "out_channels": 16}
    shape |= {f"audio_{key}": value for key, value in sound.items()}
    return randomize(LTX2VideoTransformer3DModel(**shape, rope_type="split"), 3)


def make_inputs(name: str, width: int, each_its_own: bool) -> dict[str, Any]:
    """Return a call's arguments; with `each_its_own`, the first frame's timestep is 0."""
    generator = seeded(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = FRAMES * SIDE * width
    times = torch.full((1, tokens), 500.0)
    times[:, : SIDE * width] = 0.0
    given: dict[str, Any] = {
        "timestep": times if each_its_own else torch.tensor([500.0]),
        "encoder_hidden_states": noise(1, TEXT, 32),
        "return_dict": False,
    }
    if name == "wan":
        return {**given, "hidden_states": noise(1, 8, FRAMES, SIDE, width)}
    given |= {"hidden_states": noise(1, tokens, 8), "encoder_attention_mask": torch.ones(1, TEXT)}
    given |= {"num_frames": FRAMES, "height": SIDE, "width": width}
    if name == "ltx":
        return given
    return {
        **given,
        "audio_hidden_states": noise(1, 10, 16),
        "audio_num_frames": 10,
        "audio_timestep": torch.tensor([500.0]),
        "sigma": torch.tensor([500.0]),
        "audio_encoder_hidden_states": noise(1, TEXT, 32),
        "audio_encoder_attention_mask": torch.ones(1, TEXT),
    }


FAMILIES = ("wan", "ltx", "ltx2")
CASES: Mapping[str, tuple[int, bool]] = {
    "one timestep": (4, False),
    "each its own": (4, True),
    "unequal shares, each its own": (5, True),
}
"""Width in tokens, and whether each has a timestep of its own."""


@torch.no_grad()
def predict(model: nn.Module, name: str, case: str) -> list[Tensor]:
    """Return what a transformer predicts: pictures, with LTX-2 sound too."""
    return [each.clone() for each in model(**make_inputs(name, *CASES[case])) if each is not None]


def predict_shared(out: Path) -> None:
    """One rank's work: every family, every case, on one model."""
    place = Place.find(ParallelLayout(context=2), "cpu")
    assert place.context
    for name in FAMILIES:
        model = build(name)
        place.context.split_transformer(model)
        made = {case: predict(model, name, case) for case in [*CASES, *CASES]}
        with pytest.MonkeyPatch.context() as patch:
            for module in (lengths, attention_dispatch):
                patch.delattr(module, "gather_size_by_comm")
            made["unasked"] = predict(model, name, "one timestep")
        torch.save(made, out / f"{name}.{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each of two ranks predicted."""
    out = tmp_path_factory.mktemp("tokens")
    run_ranks(2, out, predict_shared, out)
    return out


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_predict_what_one_does(shared: Path, name: str, case: str) -> None:
    alone = predict(build(name), name, case)
    for rank in range(2):
        made = torch.load(shared / f"{name}.{rank}.pt")[case]
        for one, other in zip(made, alone, strict=True):
            assert float((one - other).abs().max() / other.abs().max()) <= BOUND


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_shares_go_without_asking_how_long_they_are(shared: Path, name: str) -> None:
    """Over NCCL each such question would stop the device, four times an attention."""
    made = torch.load(shared / f"{name}.0.pt")
    for one, other in zip(made["unasked"], made["one timestep"], strict=True):
        assert torch.equal(one, other)
