"""Whether diffusers can make a pipeline of a checkpoint, by names and files alone.

No torch here, nor diffusers, which takes seconds to import: a call is refused before anything is
fetched, started or written. Whoever loads the model finds out the rest (`pipeline.graph`).
"""

from __future__ import annotations

import difflib
import re
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.recipe import ModelSpec

INDEXES = ("model_index.json", "modular_model_index.json")
"""The files of which a checkpoint has one, or both: what its components are."""


def check_blocks(model: ModelSpec) -> None:
    """Check that diffusers has the blocks class that a recipe names, if it names one.

    Raises:
        UsageError: it has not; the nearest one is named.
    """
    known = _list_blocks()
    if model.blocks and known and model.blocks not in known:
        (near,) = difflib.get_close_matches(model.blocks, known, n=1, cutoff=0.0)
        raise UsageError(
            f"model.blocks: diffusers has no blocks class {model.blocks!r}; did you mean {near!r}?"
        )


def check_index(model: ModelSpec, checkpoint: Path) -> None:
    """Check that a checkpoint's folder, or what was fetched of it, has an index.

    Raises:
        UsageError: it has none.
    """
    if not any((checkpoint / name).is_file() for name in INDEXES):
        raise UsageError(
            f"model.checkpoint: {model.checkpoint} is no checkpoint in diffusers format: "
            f"it has neither {' nor '.join(INDEXES)}"
        )


def _list_blocks() -> set[str]:
    """Return the blocks classes that diffusers exports: it lists them, as text, at its top."""
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        return set()
    text = Path(spec.origin).read_text("utf-8")
    return set(re.findall(r'"(\w+Blocks)"', text)) - _BASES


_BASES = {
    f"{kind}PipelineBlocks"
    for kind in ("Auto", "Conditional", "LoopSequential", "Modular", "Sequential")
}
