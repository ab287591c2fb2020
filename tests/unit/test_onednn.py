"""Convolutions by oneDNN: the same numbers, and no slow kernel left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pipeline.develop import Decoder
from pipeline.handoff import Latents
from pipeline.onednn import use_onednn
from tests.support.families import FAMILIES
from tests.support.staged import Staged, request_of


@pytest.fixture(scope="module")
def staged(checkpoint_of: Callable[[str], Path]) -> Staged:
    return Staged(FAMILIES["wan_vace"], checkpoint_of("wan_vace"))


def decode(decoder: Decoder, staged: Staged) -> tuple[np.ndarray, set[str]]:
    """Return a clip's frames, and the kernels that made them."""
    latents = torch.randn((1, 16, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    request = request_of(staged.family, width=64, height=64, num_frames=9)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        clip = decoder.decode(request, Latents({"latents": latents}))
        frames = np.concatenate(list(clip.frames))
    return frames, {str(event.key) for event in cast(Any, seen).key_averages()}


def test_a_clip_is_the_same_and_leaves_the_slow_kernel_alone(staged: Staged) -> None:
    plain, kernels = decode(Decoder(staged.graph), staged)
    assert "aten::slow_conv3d_forward" in kernels
    fast, kernels = decode(Decoder(staged.graph, onednn=True), staged)
    assert "aten::slow_conv3d_forward" not in kernels
    assert np.abs(plain.astype(int) - fast).max() <= 1  # one of 255 levels


@pytest.mark.parametrize("bias", [True, False])
def test_strides_padding_and_groups_are_kept(bias: bool) -> None:
    conv = nn.Conv3d(
        4, 6, 3, stride=(1, 2, 2), padding=(0, 1, 1), dilation=(2, 1, 1), groups=2, bias=bias
    ).requires_grad_(False)
    x = torch.randn((2, 4, 7, 9, 8), generator=torch.Generator().manual_seed(0))
    expected = conv(x)
    use_onednn(conv)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)
