"""The embedded model: a small, trained Wan-VACE checkpoint that ships with the package.

`CHECKPOINT` is an ordinary diffusers folder. Nothing here imports torch, so the path can be
had for nothing; what made the weights is beside it (`train`), and what they are worth
(`evaluate`, README.md).
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT: Path = Path(__file__).parent / "checkpoint"
"""The folder of the shipped weights: `WanVACEPipeline.from_pretrained(CHECKPOINT)` loads it."""
