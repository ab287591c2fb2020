"""Stage `vae`: the autoencoder. It caps everything that comes after it."""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from pipeline.tiny.models import LATENT_CHANNELS, build_vae
from pipeline.tiny.optim import optimizers
from pipeline.tiny.scenes import draw_scene, render
from pipeline.tiny.stage import Budget, Rates, cosine, numpy_rng, torch_rng, train
from pipeline.tiny.whole import decode_whole, encode_whole, hasten

# Widths of 64 and 48 alone: for 96 and 112 oneDNN's bf16 gradient of a 3 x 3 x 3 convolution from
# 32 to 16 channels is not a number, or writes outside its memory (torch 2.13, AMX).
SIZES: tuple[tuple[int, int, int, int, float], ...] = (
    # frames, height, width, clips in one process's batch, how often
    (9, 48, 48, 2, 0.75),
    (17, 64, 64, 1, 0.12),
    (9, 80, 48, 1, 0.08),
    (5, 96, 64, 2, 0.05),
)
KL_WEIGHT = 2e-4
SEED = 11


def blanked(rng: np.random.Generator, video: Tensor) -> Tensor:
    """A clip as VACE gives one to the encoder: all but some frames, or a box, mid-gray.

    video: (3, frames, h, w) in [-1, 1]; gray is exactly 0. One clip in five is blanked.
    """
    if rng.random() > 0.2:
        return video
    video = video.clone()
    frames, height, width = video.shape[1:]
    if rng.random() < 0.6:
        video[:, int(rng.integers(1, max(2, frames // 2))) :] = 0
    else:
        top, left = (int(rng.integers(0, side // 2)) for side in (height, width))
        box_h, box_w = (int(rng.integers(side // 4, side // 2 + 1)) for side in (height, width))
        video[:, :, top : top + box_h, left : left + box_w] = 0
    return video


def batch(seed: int, step: int) -> Tensor:
    """Clips of one size for a step: (n, 3, frames, h, w) in [-1, 1]."""
    rng = numpy_rng(seed, step)
    chosen = int(rng.choice(len(SIZES), p=[size[4] for size in SIZES]))
    frames, height, width, count, _ = SIZES[chosen]
    clips: list[Tensor] = []
    for _ in range(count):
        # Small squares are windows of a larger clip: less plain background to no use.
        drawn = (64, 64) if height == width else (height, width)
        clip = render(draw_scene(rng), 17 if frames == 9 else frames, *drawn)
        spans = zip(clip.shape, (frames, height, width), strict=False)
        t, y, x = (int(rng.integers(0, whole - part + 1)) for whole, part in spans)
        window = clip[t : t + frames, y : y + height, x : x + width]
        video = torch.from_numpy(window).permute(3, 0, 1, 2) * 2 - 1
        clips.append(blanked(rng, video))
    return torch.stack(clips).contiguous(memory_format=torch.channels_last_3d)


def reconstruction(vae: AutoencoderKLWan, video: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """The clip through the VAE, with the latents' means and log variances."""
    with torch.autocast("cpu", torch.bfloat16):
        moments = encode_whole(vae, video)
        mean, spread = moments.float().split(LATENT_CHANNELS, dim=1)
        spread = spread.clamp(-12, 2)
        latents = mean + noise * torch.exp(0.5 * spread)
        return decode_whole(vae, latents).float(), mean, spread


def error(made: Tensor, video: Tensor) -> tuple[Tensor, float]:
    """L1 and squared error together, and the PSNR in dB over [-1, 1]."""
    squared = (made - video).square().mean()
    loss = (made - video).abs().mean() + squared
    clamped = (made.detach().clamp(-1, 1) - video).square().mean(dim=(1, 2, 3, 4))
    return loss, float((10 * torch.log10(4 / clamped.clamp(min=1e-8))).mean())


def run(work: Path, budget: Budget, *, seed: int = SEED, rate: Rates = cosine) -> None:
    """Train the VAE in `work/vae` to its budget."""
    torch.manual_seed(seed)
    vae = build_vae().train()
    hasten(vae)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        video = batch(seed, step)
        n, _, frames, height, width = video.shape
        shape = (n, LATENT_CHANNELS, (frames + 3) // 4, height // 8, width // 8)
        noise = torch.randn(shape, generator=torch_rng(seed, step))
        made, mean, spread = reconstruction(vae, video, noise)
        loss, psnr = error(made, video)
        kl = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
        return loss + KL_WEIGHT * kl, {"psnr": psnr, "kl": float(kl.detach())}

    made = optimizers(vae.parameters(), muon_rate=5e-3, adam_rate=2e-3)
    train(work / "vae", vae, made, step_loss, budget, rate=rate)
