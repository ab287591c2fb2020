"""Each overlay, built by kubectl."""

from __future__ import annotations

import shutil

import pytest

from tests.support.manifests import OVERLAYS, Document, build_overlay


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    """An overlay's documents."""
    return build_or_skip(request.param)


@pytest.fixture
def build() -> object:
    """A function that builds the overlay of a name."""
    return build_or_skip


def build_or_skip(name: str) -> list[Document]:
    """Return an overlay's documents; skip where kubectl is absent."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is absent: it builds the overlays")
    return build_overlay(name)
