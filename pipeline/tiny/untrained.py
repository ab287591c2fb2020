"""Write the embedded model before training: the final classes and shapes, seeded weights.

    python -m pipeline.tiny.untrained --output DIR

For building against, and for tests that need no meaning. The same seed writes the same files.
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pipeline.tiny.assemble import save_checkpoint
from pipeline.tiny.models import build_text_encoder, build_transformer, build_vae
from pipeline.tiny.text import build_tokenizer

MARK = "UNTRAINED"
"""The file that tells an untrained checkpoint from a trained one."""


def write(output: Path, seed: int = 0) -> None:
    """Write the untrained checkpoint into `output`."""
    torch.manual_seed(seed)
    vae, text_encoder, transformer = build_vae(), build_text_encoder(), build_transformer()
    save_checkpoint(output, build_tokenizer(), text_encoder, vae, transformer)
    (output / MARK).write_text("These weights are random: `python -m pipeline.tiny.train`.\n")


def main(argv: list[str] | None = None) -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description="Write the embedded model, untrained.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (0)")
    given = parser.parse_args(argv)
    write(given.output, given.seed)


if __name__ == "__main__":
    main()
