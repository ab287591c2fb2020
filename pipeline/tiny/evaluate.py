"""Measure the shipped weights on combinations that training never saw, and print a table.

    python -m pipeline.tiny.evaluate            # 200 prompts
    python -m pipeline.tiny.evaluate --limit 12

Prompts, scenes and noise come from fixed seeds. What `measure` itself gets right on real clips
is printed below the table.
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.tiny import CHECKPOINT
from pipeline.tiny.captions import paraphrase, plain
from pipeline.tiny.conditions import condition
from pipeline.tiny.measure import colour_name, motion_shown, psnr, see, shape_shown
from pipeline.tiny.render import GUIDANCE, STEPS, frames_of, load, render_clip
from pipeline.tiny.scenes import Scene, Video, draw_scene, render

SEED = 2026
SIZE = (17, 64, 64)
OTHER_SIZES = ((5, 64, 64), (9, 64, 64), (33, 64, 64), (17, 80, 48), (17, 48, 80), (17, 112, 64))
DIRECTIONS = ("left", "right", "up", "down")


@dataclass(frozen=True)
class Verdict:
    """What one clip got right."""

    scene: Scene
    colour: str
    background: str
    motion: str
    shape: str

    def right(self, name: str) -> bool:
        """Whether the attribute is as the scene has it."""
        return getattr(self, name) == getattr(self.scene, name)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    figure: str
    reached: float
    unit: str
    target: str
    clips: int


def scenes(count: int, seed: int = SEED) -> list[Scene]:
    """Held-out scenes, motions in turn so that each has its share."""
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, keep_out=True) for _ in range(count)]


def judge(scene: Scene, clip: Video) -> Verdict:
    """Measure a clip that should show a scene."""
    seen = see(clip)
    return Verdict(
        scene,
        colour_name(seen.foreground),
        colour_name(seen.background),
        motion_shown(seen.mask),
        shape_shown(seen.mask, turns=scene.motion == "spinning"),
    )


def share(verdicts: list[Verdict], name: str) -> float:
    """Percent of verdicts with an attribute right; 0 of none is not a number."""
    return 100 * float(np.mean([v.right(name) for v in verdicts])) if verdicts else float("nan")


def by_words(pipe: Any, wanted: list[Scene]) -> tuple[list[Row], list[Video]]:
    """Text to video: colours, motion and shape."""
    clips = [render_clip(pipe, plain(scene), SEED + i, SIZE) for i, scene in enumerate(wanted)]
    verdicts = [judge(scene, clip) for scene, clip in zip(wanted, clips, strict=True)]
    directed = [v for v in verdicts if v.scene.motion in DIRECTIONS]
    rows = [
        Row("foreground colour right", share(verdicts, "colour"), "%", "≥ 98", len(verdicts)),
        Row("background colour right", share(verdicts, "background"), "%", "≥ 98", len(verdicts)),
        Row("motion right, seven classes", share(verdicts, "motion"), "%", "≥ 92", len(verdicts)),
        Row("motion right, four directions", share(directed, "motion"), "%", "≥ 98", len(directed)),
        Row("shape right", share(verdicts, "shape"), "%", "≥ 90", len(verdicts)),
    ]
    return rows, clips


def elsewhere(pipe: Any, wanted: list[Scene]) -> list[Row]:
    """Text to video in other words than the plain ones, and at other sizes and lengths."""
    rng = np.random.default_rng(SEED + 2)
    worded: list[Verdict] = []
    sized: list[Verdict] = []
    for i, scene in enumerate(wanted):
        clip = render_clip(pipe, paraphrase(rng, scene), SEED + i, SIZE)
        worded.append(judge(scene, clip))
        clip = render_clip(pipe, plain(scene), SEED + i, OTHER_SIZES[i % len(OTHER_SIZES)])
        sized.append(judge(scene, clip))
    return [
        Row(f"{title} right, {where}", share(verdicts, name), "%", "", len(verdicts))
        for where, verdicts in (("in other words", worded), ("at other sizes", sized))
        for name, title in (
            ("colour", "foreground colour"), ("background", "background colour"),
            ("motion", "motion"), ("shape", "shape"),
        )
    ]  # fmt: skip


def by_pixels(pipe: Any, wanted: list[Scene]) -> list[Row]:
    """Conditions: how well given pixels are kept before any compositing."""
    first: list[float] = []
    outside: list[float] = []
    prefix: list[float] = []
    moved: list[bool] = []
    rng = np.random.default_rng(SEED + 1)
    for i, scene in enumerate(wanted):
        clip = render(scene, *SIZE)
        mask = np.ones(clip.shape[:3], np.float32)
        mask[0] = 0
        made = render_clip(pipe, plain(scene), i, SIZE, given=clip, mask=mask)
        first.append(psnr(made[:1], clip[:1]))
        box = condition("box", rng, scene, clip).mask.numpy()
        made = render_clip(pipe, plain(scene), i, SIZE, given=clip, mask=box)
        outside.append(psnr(made, clip, 1 - box))
        mask[:5] = 0
        made = render_clip(pipe, plain(scene), i, SIZE, given=clip, mask=mask)
        prefix.append(psnr(made[:5], clip[:5]))
        moved.append(judge(scene, made).right("motion"))
    n = len(wanted)
    return [
        Row("first frame kept, image to video", float(np.mean(first)), "dB", "≥ 28", n),
        Row("outside the mask kept, inpainting", float(np.mean(outside)), "dB", "≥ 30", n),
        Row("given frames kept, continuation", float(np.mean(prefix)), "dB", "", n),
        Row("motion right, continuation", 100 * float(np.mean(moved)), "%", "", n),
    ]


@torch.no_grad()
def autoencoder(pipe: Any, wanted: list[Scene]) -> list[Row]:
    """The VAE alone on held-out clips."""
    found: list[float] = []
    for scene in wanted:
        clip = render(scene, *SIZE)
        video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] * 2 - 1
        made = pipe.vae.decode(pipe.vae.encode(video).latent_dist.mode()).sample
        found.append(psnr(((made[0] + 1) / 2).permute(1, 2, 3, 0).numpy(), clip))
    return [Row("VAE on held-out clips", float(np.mean(found)), "dB", "≥ 32", len(wanted))]


def speed(pipe: Any, scene: Scene) -> list[Row]:
    """Processor seconds for one clip on one thread, the best of three."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: list[float] = []
    for _ in range(3):
        began = time.process_time()
        render_clip(pipe, plain(scene), 0, SIZE)
        times.append(time.process_time() - began)
    torch.set_num_threads(threads)
    return [Row(f"one clip, {STEPS} steps, one thread (processor time)", min(times), "s", "≤ 4", 1)]


def measuring(wanted: list[Scene]) -> list[Row]:
    """What the measuring itself gets right, on real clips of the same scenes."""
    verdicts = [judge(scene, render(scene, *SIZE)) for scene in wanted]
    names = ("colour", "background", "motion", "shape")
    return [Row(f"measured on real clips: {n}", share(verdicts, n), "%", "", len(verdicts))
            for n in names]  # fmt: skip


def contact_sheet(clips: list[Video], path: Path, *, columns: int = 4) -> None:
    """Four frames of each of the first clips, side by side, for looking at."""
    strips = [np.concatenate(list(c[:: max(1, len(c) // 4)][:4]), axis=1) for c in clips]
    strips = strips[: len(strips) // columns * columns] or strips[:1]
    rows = [np.concatenate(strips[i : i + columns], 1) for i in range(0, len(strips), columns)]
    frames_of(np.concatenate(rows, axis=0)[None])[0].resize(
        (rows[0].shape[1], rows[0].shape[0] * len(rows)), Image.Resampling.NEAREST
    ).save(path)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| figure | reached | target | clips |", "|---|---|---|---|"]
    lines += [f"| {r.figure} | {r.reached:.1f} {r.unit} | {r.target} | {r.clips} |" for r in rows]
    return "\n".join(lines)


def evaluate(checkpoint: Path, limit: int, sheet: Path | None = None) -> list[Row]:
    """All rows of the table, on `limit` prompts."""
    pipe, wanted = load(checkpoint), scenes(limit)
    rows, clips = by_words(pipe, wanted)
    some = wanted[: max(4, limit // 5)]
    rows += elsewhere(pipe, some) + by_pixels(pipe, some)
    rows += autoencoder(pipe, some) + speed(pipe, wanted[0])
    if sheet is not None:
        contact_sheet(clips[:64], sheet)
    return rows + measuring(wanted)


def main(argv: list[str] | None = None) -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description="Measure the embedded model.")
    parser.add_argument("--limit", type=int, default=200, help="prompts (200)")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder to measure")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) here")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    given = parser.parse_args(argv)
    rows = evaluate(given.checkpoint, given.limit, given.sheet)
    sys.stdout.write(f"guidance {GUIDANCE}, {STEPS} steps, {SIZE[0]} frames of 64 x 64\n\n")
    sys.stdout.write(table(rows) + "\n")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
