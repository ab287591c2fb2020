"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny family's checkpoint, built when first asked for."""
    import torch

    from tests.support.families import FAMILIES

    torch.set_num_threads(1)  # models this small gain nothing from a second
    root = tmp_path_factory.mktemp("checkpoints")

    def build(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            FAMILIES[name].build(folder)
        return folder

    return build
