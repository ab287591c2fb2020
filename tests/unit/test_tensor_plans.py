"""What tensor parallelism cuts, what it refuses, and what a rank reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
import torch.distributed as dist
from diffusers import AutoModel, LTXVideoTransformer3DModel, WanTransformer3DModel
from diffusers.models.attention_dispatch import _maybe_pad_qkv_head
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from pipeline.errors import UsageError
from pipeline.parallel import context, loading
from pipeline.parallel.degrees import check_degrees
from pipeline.parallel.loading import WEIGHTS, load_share
from pipeline.parallel.plans import PLANS, TensorPlan
from pipeline.parallel.tensor import RowNorm, TensorGroup, cut_transformer, find_plan
from pipeline.recipe import GangShape
from tests.support.families import FAMILIES

WAN = {
    "num_attention_heads": 12,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 96,
    "num_layers": 1,
}
WAN_PLAN = PLANS["WanTransformer3DModel"]


def wan() -> nn.Module:
    with torch.device("meta"):
        return WanTransformer3DModel(**WAN)


def transformers(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith("transformer"))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_has_a_plan(checkpoint_of: Callable[[str], Path], name: str) -> None:
    for folder in transformers(checkpoint_of(name)):
        find_plan(type(AutoModel.from_pretrained(str(folder))))


def test_a_class_without_a_plan_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Linear has no plan .* WanTransformer3DModel"):
        find_plan(nn.Linear)


def test_a_degree_that_does_not_divide_is_refused_with_those_that_would() -> None:
    with pytest.raises(UsageError, match=r"tensor = 5 .* 12 heads; 1, 2, 3, 4, 6, 12 would"):
        cut_transformer(wan(), WAN_PLAN, TensorGroup(0, 5))
    with torch.device("meta"):
        narrow = WanTransformer3DModel(**{**WAN, "ffn_dim": 90})
    with pytest.raises(UsageError, match=r"tensor = 4 .* 90 channels; 1, 2, 3, 6 would"):
        cut_transformer(narrow, WAN_PLAN, TensorGroup(0, 4))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_configuration_is_refused_for_what_its_model_would_be(
    checkpoint_of: Callable[[str], Path], name: str
) -> None:
    folder = checkpoint_of(name)

    def is_refused(check: Callable[[int], object], size: int) -> bool:
        try:
            check(size)
        except UsageError:
            return True
        return False

    def cut(size: int) -> None:
        for each in transformers(folder):
            kind = type(AutoModel.from_pretrained(str(each)))
            with torch.device("meta"):
                model = kind.from_config(kind.load_config(str(each)))
            cut_transformer(model, find_plan(kind), TensorGroup(0, size))

    def configured(size: int) -> None:
        check_degrees(folder, [GangShape(name="a", tensor=size)])

    refused = {size: is_refused(configured, size) for size in range(1, 9)}
    assert refused == {size: is_refused(cut, size) for size in range(1, 9)}
    assert set(refused.values()) == {True, False}


def test_a_configuration_without_a_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    config = tmp_path / "transformer" / "config.json"
    config.write_text('{"_class_name": "CogVideoXTransformer3DModel", "num_attention_heads": 30}')
    with pytest.raises(UsageError, match=r"CogVideoX\w+ has no plan for context .* Helios"):
        check_degrees(tmp_path, [GangShape(name="a", context=2)])
    with pytest.raises(UsageError, match=r"CogVideoX\w+ has no plan for tensor .* Helios"):
        check_degrees(tmp_path, [GangShape(name="a", tensor=2)])
    config.write_text('{"_class_name": "HeliosTransformer3DModel", "is_amplify_history": true}')
    with pytest.raises(UsageError, match="HeliosTransformer3DModel weighs past frames"):
        check_degrees(tmp_path, [GangShape(name="a", context=2)])
    config.write_text('{"_class_name": "LTX2VideoTransformer3DModel", "rope_type": "interleaved"}')
    with pytest.raises(UsageError, match="LTX2VideoTransformer3DModel has interleaved rotary"):
        check_degrees(tmp_path, [GangShape(name="a", context=2)])
    config.write_text(
        '{"_class_name": "WanTransformer3DModel", "num_attention_heads": 4, '
        '"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}}'
    )
    with pytest.raises(UsageError, match="tensor = 2: transformer is quantized"):
        check_degrees(tmp_path, [GangShape(name="a", tensor=2)])
    check_degrees(tmp_path, [GangShape(name="a", context=2)])
    for nameless in ("{}", "[]", "null"):
        config.write_text(nameless)
        with pytest.raises(UsageError, match=r"transformer/config\.json has no _class_name"):
            check_degrees(tmp_path, [GangShape(name="a", tensor=2)])
    config.write_text("{")
    with pytest.raises(UsageError, match=r"transformer/config\.json is no JSON"):
        check_degrees(tmp_path, [GangShape(name="a", tensor=2)])


def test_both_tables_have_the_same_classes() -> None:
    assert context.PLANS.keys() == PLANS.keys()


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_heads_that_diffusers_would_not_deal_out_are_refused(tmp_path: Path, tensor: int) -> None:
    (tmp_path / "transformer").mkdir()
    for heads in (12, 16, 24, 32, 40):
        config = {"_class_name": "WanTransformer3DModel", "num_attention_heads": heads}
        (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
        for degree in range(1, 9):
            shape = GangShape(name="a", tensor=tensor, context=degree)
            if would_diffusers_deal_out(heads // tensor, degree):
                check_degrees(tmp_path, [shape])
                continue
            with pytest.raises(UsageError, match=rf"context = {degree} .*{heads} heads") as refused:
                check_degrees(tmp_path, [shape])
            works = str(refused.value).rpartition(";")[2].removesuffix(" would").split(",")
            assert all(would_diffusers_deal_out(heads // tensor, int(each)) for each in works)


def would_diffusers_deal_out(heads: int, ranks: int) -> bool:
    """Return what its own check says; here, of as many ranks as are asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "get_world_size", lambda group: ranks)
        try:
            _maybe_pad_qkv_head(torch.zeros(1, 1, heads, 1), heads, cast(Any, None))
        except AssertionError:
            return False
    return True


class Halves(TensorGroup):
    """Two ranks of which the other has the same sums."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + tensor


def test_a_norm_over_ranks_sums_in_float32() -> None:
    half = torch.randn(64, 2560, generator=torch.Generator().manual_seed(3)).bfloat16()
    whole = nn.RMSNorm(5120, eps=1e-6, dtype=torch.bfloat16)
    norm = RowNorm(whole, Halves(0, 2))
    norm.weight = None
    wide = torch.cat([half, half], dim=1).float()
    expected = functional.rms_norm(wide, (5120,), eps=1e-6).bfloat16()[:, :2560]
    assert (norm(half) != expected).float().mean() < 0.001
    rounded = half.float() * torch.rsqrt(2 * half.square().sum(-1, keepdim=True) / 5120 + 1e-6)
    assert (rounded.bfloat16() != expected).float().mean() > 0.1, "summed in bfloat16"


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"has no vace_blocks\.\*\.attn1"):
        cut_transformer(wan(), PLANS["WanVACETransformer3DModel"], TensorGroup(0, 2))


def test_a_module_matched_twice_is_an_error() -> None:
    plan = TensorPlan(("blocks.*.attn1", "blocks.0.*"), WAN_PLAN.feed_forwards)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn1 is matched by .* and by"):
        cut_transformer(wan(), plan, TensorGroup(0, 2))


def test_a_part_without_a_role_is_an_error() -> None:
    plan = TensorPlan(("blocks.*",), WAN_PLAN.feed_forwards)
    with pytest.raises(ValueError, match="has no role"):
        cut_transformer(wan(), plan, TensorGroup(0, 2))


def test_a_gated_feed_forward_is_refused() -> None:
    model = wan()
    ffn = model.get_submodule("blocks.0.ffn")
    ffn.net[0].proj = nn.Linear(144, 192, device="meta")  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match="is gated"):
        cut_transformer(model, WAN_PLAN, TensorGroup(0, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["wan21", "ltx2"])
def test_a_share_of_all_is_what_diffusers_loads(
    checkpoint_of: Callable[[str], Path], name: str, dtype: torch.dtype
) -> None:
    folder = checkpoint_of(name) / "transformer"
    whole = AutoModel.from_pretrained(str(folder), torch_dtype=dtype)
    share = load_share(type(whole), folder, dtype, TensorGroup(0, 1))
    for found, expected in (
        (share.state_dict(), whole.state_dict()),
        (dict(share.named_buffers()), dict(whole.named_buffers())),  # also what is in no file
    ):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == value.dtype, key
            assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", list(PLANS))
def test_of_a_models_real_size_little_stays_whole(name: str) -> None:
    """Of each class's own defaults two ranks hold a half each, and at most 3 % more."""
    kind: type[Any] = getattr(diffusers, name)
    with torch.device("meta"):
        model = kind()
    whole = model.num_parameters()
    cut_transformer(model, find_plan(kind), TensorGroup(0, 2))
    assert 2 * model.num_parameters() <= 1.03 * whole


@pytest.mark.parametrize(("size", "piece_bytes"), [(2, loading.PIECE_BYTES), (4, 1000), (2, 100)])
def test_shares_of_many_files_are_the_whole(
    checkpoint_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    piece_bytes: int,
) -> None:
    """Large weights are read in pieces."""
    monkeypatch.setattr(loading, "PIECE_BYTES", piece_bytes)
    whole = AutoModel.from_pretrained(str(checkpoint_of("ltx") / "transformer"))
    assert isinstance(whole, LTXVideoTransformer3DModel)
    whole.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    group = [TensorGroup(rank, size) for rank in range(size)]
    shares = [load_share(type(whole), tmp_path, torch.float32, each) for each in group]
    cuts = cut_transformer(type(whole).from_config(whole.config), find_plan(type(whole)), group[0])
    states = [share.state_dict() for share in shares]
    for key, value in whole.state_dict().items():
        parts = [state[key] for state in states]
        if key in cuts:
            assert torch.equal(torch.cat(parts, cuts[key]), value), key
        else:
            assert all(torch.equal(part, value) for part in parts), key
    cut = sum(whole.state_dict()[key].numel() for key in cuts)
    held = sum(value.numel() for value in states[0].values())
    assert held == whole.num_parameters() - cut + cut // size
    assert cut > 0.5 * whole.num_parameters()


def test_a_rank_reads_its_share_alone(
    checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_of("wan21") / "transformer"
    read = Counter[str]()

    class Counted:
        """A safetensors file that counts which numbers are read of it."""

        def __init__(self, *given: Any, **how: Any) -> None:
            self.file: Any = safe_open(*given, **how)

        def __enter__(self) -> Counted:
            self.file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            return list(self.file.keys())

        def get_tensor(self, name: str) -> torch.Tensor:
            found: torch.Tensor = self.file.get_tensor(name)
            read[name] += found.numel()
            return found

        def get_slice(self, name: str) -> Any:
            return CountedSlice(name, self.file.get_slice(name))

    class CountedSlice:
        """A weight of which parts are read."""

        def __init__(self, name: str, whole: Any) -> None:
            self.name, self.whole = name, whole

        def get_shape(self) -> list[int]:
            return self.whole.get_shape()

        def __getitem__(self, spans: Any) -> torch.Tensor:
            found: torch.Tensor = self.whole[spans]
            read[self.name] += found.numel()
            return found

    monkeypatch.setattr(loading, "safe_open", Counted)
    share = load_share(WanTransformer3DModel, folder, torch.float32, TensorGroup(1, 4))
    assert read == {name: value.numel() for name, value in share.state_dict().items()}
    whole = WanTransformer3DModel.from_pretrained(str(folder))
    assert sum(read.values()) < 0.6 * whole.num_parameters()


def test_weights_that_diffusers_passes_over_are_passed_over(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Wan 2.1 image-to-video's published files have norms that nothing uses."""
    whole = AutoModel.from_pretrained(str(checkpoint_of("wan21") / "transformer"))
    whole.save_config(tmp_path)
    extra = {"blocks.0.attn2.norm_added_q.weight": torch.ones(4)}
    save_file({**whole.state_dict(), **extra}, tmp_path / WEIGHTS)
    share = load_share(type(whole), tmp_path, torch.float32, TensorGroup(0, 1))
    assert share.state_dict().keys() == whole.state_dict().keys()
    save_file({**whole.state_dict(), "blocks.0.norm_x.weight": torch.ones(4)}, tmp_path / WEIGHTS)
    with pytest.raises(UsageError, match=r"unknown weight blocks\.0\.norm_x"):
        load_share(type(whole), tmp_path, torch.float32, TensorGroup(0, 1))


def test_a_checkpoint_without_a_weight_says_so(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = AutoModel.from_pretrained(str(checkpoint_of("wan21") / "transformer"))
    whole.save_config(tmp_path)
    state = whole.state_dict()
    state.pop("proj_out.weight")
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(UsageError, match=r"lacks 1 weights: proj_out\.weight"):
        load_share(type(whole), tmp_path, torch.float32, TensorGroup(0, 2))
