"""A hub's cache with a repository of two commits, which moves on when told."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Hub:
    """A cache as huggingface_hub lays it out, to be used offline."""

    cache: Path
    _repository: Path
    first: str = "a" * 40
    second: str = "b" * 40
    """A commit with other weights for the transformer."""

    def move(self) -> None:
        """Have main be the second commit."""
        (self._repository / "refs" / "main").write_text(self.second)


def make_hub(folder: Path, repository: str, checkpoint: Path) -> Hub:
    """Return a hub whose main is a copy of a checkpoint."""
    cache = folder / "hub"
    hub = Hub(cache, cache / f"models--{repository.replace('/', '--')}")
    for commit in (hub.first, hub.second):
        shutil.copytree(checkpoint, hub._repository / "snapshots" / commit)
    (weights,) = (hub._repository / "snapshots" / hub.second / "transformer").glob("*.safetensors")
    others = {name: each * 1.3 for name, each in load_file(weights).items()}
    save_file(others, weights, metadata={"format": "pt"})
    (hub._repository / "refs").mkdir()
    (hub._repository / "refs" / "main").write_text(hub.first)
    return hub
