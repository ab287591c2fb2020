"""Stage `cache`: clips as latents, captions and conditions, in shards to train from.

A shard holds clips of one size. Latents are raw; their mean and deviation over the first shards
become the VAE's configuration. Shards that exist are kept, so the stage resumes, and several
processes can each make their own.
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from pipeline.tiny.captions import paraphrase, plain
from pipeline.tiny.conditions import condition, draw_kind, pack_mask, to_video
from pipeline.tiny.models import LATENT_CHANNELS, SPATIAL, TEMPORAL, build_vae
from pipeline.tiny.scenes import draw_scene, render
from pipeline.tiny.stage import averaged, rank
from pipeline.tiny.together import world
from pipeline.tiny.whole import encode_whole, hasten

BUCKETS: tuple[tuple[int, int, int, float], ...] = (
    # frames, height, width, share of the shards
    (17, 64, 64, 0.74),
    (17, 80, 48, 0.09),
    (17, 48, 80, 0.06),
    (9, 64, 64, 0.05),
    (33, 64, 64, 0.03),
    (17, 112, 64, 0.03),
)
SHARD = 48
PARAPHRASES = 3
SEED = 37


@dataclass(frozen=True)
class Statistics:
    """Each latent channel's mean and deviation, (channels,)."""

    mean: Tensor
    deviation: Tensor

    def normal(self, latents: Tensor) -> Tensor:
        """Raw latents (n, channels, t, h, w) to about unit size."""
        shape = (1, -1, 1, 1, 1)
        return (latents.float() - self.mean.view(shape)) / self.deviation.view(shape)

    def raw(self, latents: Tensor) -> Tensor:
        """The way back."""
        shape = (1, -1, 1, 1, 1)
        return latents * self.deviation.view(shape) + self.mean.view(shape)


def trained_vae(work: Path) -> AutoencoderKLWan:
    """The finished VAE stage's weights, frozen."""
    vae = averaged(work / "vae", build_vae())
    assert isinstance(vae, AutoencoderKLWan)  # a type for the checker, not a check
    hasten(vae)
    return vae.requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Raw latent means in half precision: (n, 3, f, h, w) to (n, channels, t, h / 8, w / 8)."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [encode_whole(vae, part)[:, :LATENT_CHANNELS] for part in video.split(8)]
    return torch.cat(parts).half()


def bucket_of(index: int, shards: int) -> tuple[int, int, int]:
    """The size of a shard's clips; sizes are spread evenly over the shards."""
    place = (index * 0.6180339887) % 1 if shards > 1 else 0.0
    for frames, height, width, share in BUCKETS:
        if place < share:
            return frames, height, width
        place -= share
    return BUCKETS[0][:3]


def make_shard(vae: AutoencoderKLWan, seed: int, index: int, shards: int, size: int) -> Any:
    """One shard: latents, captions, conditions. Pure in its arguments."""
    rng = np.random.default_rng([seed, index])
    frames, height, width = bucket_of(index, shards)
    videos: list[Tensor] = []
    captions: list[list[str]] = []
    swapped: list[str] = []
    kinds: list[str] = []
    kept: list[Tensor] = []
    redrawn: list[Tensor] = []
    kept_at, redrawn_at, masks = [], [], []
    for i in range(size):
        scene = draw_scene(rng)
        clip = render(scene, frames, height, width)
        videos.append(to_video(clip))
        captions.append([plain(scene), *(paraphrase(rng, scene) for _ in range(PARAPHRASES))])
        swapped.append(plain(replace(scene, colour=scene.background, background=scene.colour)))
        kind = draw_kind(rng)
        kinds.append(kind)
        if kind == "none":
            continue
        given = condition(kind, rng, scene, clip)
        kept.append(given.kept)
        kept_at.append(i)
        masks.append(pack_mask(given.mask).bool())
        if given.redrawn is not None:
            redrawn.append(given.redrawn)
            redrawn_at.append(i)
    blank = torch.zeros(1, 3, frames, height, width)
    encoded = encode(vae, torch.cat([blank, torch.stack(videos + kept + redrawn)]))
    first, second = 1 + size, 1 + size + len(kept)
    latents_shape = (LATENT_CHANNELS, (frames - 1) // TEMPORAL + 1, height // SPATIAL)
    return {
        "size": (frames, height, width),
        "blank": encoded[0],
        "latents": encoded[1:first],
        "kept": encoded[first:second],
        "kept_at": torch.tensor(kept_at, dtype=torch.long),
        "redrawn": encoded[second:],
        "redrawn_at": torch.tensor(redrawn_at, dtype=torch.long),
        "masks": torch.stack(masks) if masks else torch.ones(0, 64, *latents_shape[1:], width // 8),
        "captions": captions,
        "swapped": swapped,
        "kinds": kinds,
    }


def run(work: Path, clips: int, *, seed: int = SEED, shard: int = SHARD) -> None:
    """Fill `work/cache` with so many clips; processes share the shards."""
    folder = work / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    vae = trained_vae(work)
    shards = max(1, clips // shard)
    for index in range(rank(), shards, world()):
        path = folder / f"{index:05d}.pt"
        if path.exists():
            continue
        began = time.monotonic()
        partial = path.with_suffix(".partial")
        torch.save(make_shard(vae, seed, index, shards, shard), partial)
        partial.replace(path)
        sys.stdout.write(f"cache {index + 1}/{shards} {time.monotonic() - began:.1f} s\n")
        sys.stdout.flush()


def load_shards(work: Path) -> list[Any]:
    """All shards there are, in order."""
    return [torch.load(p, weights_only=True) for p in sorted((work / "cache").glob("*.pt"))]


def statistics(shards: list[Any]) -> Statistics:
    """Mean and deviation of the first shards' latents."""
    latents = [s["latents"].float().transpose(0, 1).flatten(1) for s in shards[:24]]
    flat = torch.cat(latents, dim=1)
    return Statistics(flat.mean(dim=1), flat.std(dim=1).clamp(min=1e-3))
