"""The VAE over a whole clip at once: what training runs.

diffusers encodes and decodes a clip four frames at a time and keeps the last frames of each
convolution in a cache. Over the whole sequence at once the causal convolutions give the same
numbers (to 1e-6), run faster, and leave the output unclamped, so that gradients flow. The
resampling in time is the one place where the first frame is treated apart, written out here.

`hasten` halves a training step: in the upstream form half of it goes into copies from one memory
layout to another, and into a norm in single precision.
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    DupUp3D,
    WanCausalConv3d,
    WanResample,
    WanRMS_norm,
)
from torch import Tensor, nn
from torch.nn import functional


def _spatial(resample: WanResample, x: Tensor) -> Tensor:
    """The two-dimensional half of a resampling, frame by frame. x: (n, c, t, h, w)."""
    n, c, t, h, w = x.shape
    y = resample.resample(x.permute(0, 2, 1, 3, 4).reshape(n * t, c, h, w))
    return y.view(n, t, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def _downsample(resample: WanResample, x: Tensor) -> Tensor:
    x = _spatial(resample, x)
    if resample.mode != "downsample3d" or x.shape[2] == 1:
        return x
    # The first frame passes as it is; after it, every second step sees three frames.
    return torch.cat([x[:, :, :1], resample.time_conv(x)], dim=2)


def _upsample(resample: WanResample, x: Tensor) -> Tensor:
    if resample.mode == "upsample3d" and x.shape[2] > 1:
        first, rest = x[:, :, :1], x[:, :, 1:]
        n, c, t, h, w = rest.shape
        doubled = resample.time_conv(rest).reshape(n, 2, c, t, h, w)
        rest = torch.stack((doubled[:, 0], doubled[:, 1]), 3).reshape(n, c, 2 * t, h, w)
        x = torch.cat([first, rest], dim=2)
    return _spatial(resample, x)


def _shortcut_down(shortcut: nn.Module, x: Tensor) -> Tensor:
    """The averaging shortcut: the first frame alone is padded, as its own chunk is."""
    if x.shape[2] == 1:
        return shortcut(x)
    return torch.cat([shortcut(x[:, :, :1]), shortcut(x[:, :, 1:])], dim=2)


def _shortcut_up(shortcut: DupUp3D, x: Tensor) -> Tensor:
    return shortcut(x, first_chunk=True)


def encode_whole(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Means and log variances of a clip's latents.

    video: (n, 3, 4k + 1, h, w) in [-1, 1]. Returns (n, 2 · channels, k + 1, h / 8, w / 8).
    """
    encoder: Any = vae.encoder
    x = encoder.conv_in(video)
    for block in encoder.down_blocks:
        copy = x
        for resnet in block.resnets:
            x = resnet(x)
        if block.downsampler is not None:
            x = _downsample(block.downsampler, x)
        x = x + _shortcut_down(block.avg_shortcut, copy)
    x = encoder.mid_block(x)
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x)))
    return vae.quant_conv(x)


def decode_whole(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """A clip from latents (n, channels, k + 1, h, w): (n, 3, 4k + 1, 8h, 8w), not clamped."""
    decoder: Any = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        copy = x
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsampler is not None:
            x = _upsample(block.upsampler, x)
        if block.avg_shortcut is not None:
            x = x + _shortcut_up(block.avg_shortcut, copy)
    return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))


def _norm(self: WanRMS_norm, x: Tensor) -> Tensor:
    """The norm over channels: the length in fp32, all else in the input's own type."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    return x * (self.scale / length.clamp(min=1e-12)).to(x.dtype) * self.gamma.to(x.dtype)


def _convolve(self: WanCausalConv3d, x: Tensor) -> Tensor:
    """The causal convolution; only the padding in time needs a copy. x: (n, c, t, h, w)."""
    side, _, _, _, before, _ = self._padding
    if before:
        x = torch.cat([torch.zeros_like(x[:, :, :1])] * before + [x], dim=2)
    return functional.conv3d(x, self.weight, self.bias, self.stride, (0, side, side))


def hasten(vae: AutoencoderKLWan) -> None:
    """Make a VAE fast to train on a CPU, in place: layouts and norms. Same numbers, to rounding.

    Clips are to come in `torch.channels_last_3d`. Only `encode_whole` and `decode_whole` work then.
    """
    for part in vae.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            flat = part.weight.ndim == 4
            layout = torch.channels_last if flat else torch.channels_last_3d
            part.weight.data = part.weight.data.contiguous(memory_format=layout)
        if isinstance(part, WanCausalConv3d):
            part.forward = MethodType(_convolve, part)
        if isinstance(part, WanRMS_norm) and part.channel_first:
            part.forward = MethodType(_norm, part)
