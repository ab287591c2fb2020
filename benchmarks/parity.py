"""How far each layout's numbers are from one process's, for every family.

    python -m benchmarks.parity            print the table
    python -m benchmarks.parity --write    write it to benchmarks/parity.md

Tiny random checkpoints of the real transformer classes, in float32 on CPUs: the first forward of
the denoising model, and the latents after a clip of four steps. A figure is the largest difference
over all ranks, relative to the largest value.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from datetime import date
from importlib import metadata
from pathlib import Path

import torch

from tests.support.families import FAMILIES
from tests.support.layouts import LAYOUTS, denoise_everywhere, differences

REPORT = Path(__file__).with_name("parity.md")


def main() -> None:
    """Measure and print; write the report if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the table to parity.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rushes-parity-") as name:
        folder = Path(name)
        for family in FAMILIES.values():
            family.build(folder / family.name)
        out = folder / "out"
        out.mkdir()
        denoise_everywhere({each: folder / each for each in FAMILIES}, out)
        table = tabulate(out)
    print(table)
    if options.write:
        REPORT.write_text(f"# Parity of layouts\n\n{head()}\n\n{table}\n", "utf-8")


def tabulate(out: Path) -> str:
    """Return the differences as a Markdown table: forward / four steps."""
    lines = [
        f"| family | {' | '.join(map(str, LAYOUTS))} |",
        "|---|" + "---|" * len(LAYOUTS),
    ]
    for name in FAMILIES:
        found = [differences(out, name, layout) for layout in LAYOUTS]
        cells = [f"{each['forward']:.1e} / {each['latents']:.1e}" for each in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def head() -> str:
    """Return what was measured, on what."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers"))
    return (
        "Largest difference from one process, relative to the largest value: one forward / the "
        "latents after four steps. Tiny random checkpoints of the real classes, float32, gloo on "
        f"{os.cpu_count()} CPU cores, {versions}. {date.today()}. The bound in the tests is 1e-5.\n"
        "\nMade by `python -m benchmarks.parity --write`."
    )


if __name__ == "__main__":
    main()
