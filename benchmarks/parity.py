"""How far each layout's numbers are from one process's, for every family.

    python -m benchmarks.parity            print the table
    python -m benchmarks.parity --write    write it to benchmarks/parity.md

Tiny random checkpoints of the real transformer classes on CPUs, in float32 and in bfloat16: the
first forward of the denoising model, and the latents after a clip of four steps. A figure is the
largest difference over all ranks, relative to the largest value.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

import torch

from pipeline.parallel.layout import ParallelLayout
from pipeline.recipe import Dtype
from tests.support.families import FAMILIES
from tests.support.layouts import (
    BOTH,
    LAYOUTS,
    PAIRS,
    WIDE_LAYOUTS,
    WIDE_NAMES,
    denoise_everywhere,
    differences,
)

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
        folders = {each: folder / each for each in FAMILIES}
        tables = [
            tabulate(folders, folder / dtype, dtype, layouts)
            for dtype, layouts in (("float32", LAYOUTS), ("bfloat16", PAIRS))
        ]
        wide = {name: folders[name] for name in WIDE_NAMES}
        for dtype in ("float32", "bfloat16"):
            tables.append(tabulate(wide, folder / f"wide-{dtype}", dtype, (BOTH, *WIDE_LAYOUTS)))
    print("\n\n".join(tables))
    if options.write:
        REPORT.write_text("\n\n".join(["# Parity of layouts", head(), *tables]) + "\n", "utf-8")


def tabulate(
    folders: Mapping[str, Path], out: Path, dtype: Dtype, layouts: Sequence[ParallelLayout]
) -> str:
    """Measure; return the differences as a Markdown table: forward / four steps."""
    out.mkdir()
    denoise_everywhere(folders, out, dtype, layouts)
    lines = [
        f"| {dtype} | {' | '.join(map(str, layouts))} |",
        "|---|" + "---|" * len(layouts),
    ]
    for name in folders:
        cells: list[str] = []
        for layout in layouts:
            found = differences(out, name, layout)
            cells.append(f"{found['forward']:.1e} / {found['latents']:.1e}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def head() -> str:
    """Return what was measured, on what."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers"))
    return (
        "Largest difference from one process, relative to the largest value: one forward / the "
        "latents after four steps. Tiny random checkpoints of the real classes, gloo on "
        f"{os.cpu_count()} CPU cores, {versions}. {date.today()}. The bounds in the tests are "
        "1e-5 in float32; in bfloat16, whose spacing is 4e-3 to 8e-3, 2e-2 / 5e-2.\n"
        "\nMade by `python -m benchmarks.parity --write`."
    )


if __name__ == "__main__":
    main()
