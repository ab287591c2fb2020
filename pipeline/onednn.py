"""Small three-dimensional convolutions by oneDNN, on a CPU.

PyTorch 2.13 (`ConvParams::use_mkldnn` in aten/src/ATen/native/Convolution.cpp) leaves a convolution
of fewer than 20,480 batch x channels x frames x height elements to a kernel that takes several
times as long. A video VAE on small clips has hardly any others.
"""

from __future__ import annotations

from types import MethodType
from typing import cast

import torch
from torch import Tensor, nn


def use_onednn(model: nn.Module) -> None:
    """Let the model's float32 convolutions over frames run by oneDNN, in place, for inference.

    The numbers are the same but for rounding.
    """
    for each in (part for part in model.modules() if isinstance(part, nn.Conv3d)):
        plain = each.padding_mode == "zeros" and not isinstance(each.padding, str)
        if plain and each.weight.dtype == torch.float32:
            each._conv_forward = MethodType(_convolve, each)  # pyright: ignore[reportPrivateUsage]


def _convolve(conv: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = cast(tuple[int, ...], conv.padding)
    return torch.mkldnn_convolution(
        x, weight, bias, padding, conv.stride, conv.dilation, conv.groups
    )
