"""Each overlay, built by kubectl."""

from __future__ import annotations

import pytest

from tests.support.manifests import OVERLAYS, Document, build_overlay


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    """An overlay's documents."""
    return build_overlay(request.param)


@pytest.fixture
def build() -> object:
    """A function that builds the overlay of a name."""
    return build_overlay
