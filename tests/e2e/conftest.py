"""One online endpoint for all tests of it: it takes long to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A `tests.support.online.Server` that listens."""
    from tests.support.online import Server

    server = Server(tmp_path_factory.mktemp("serve"))
    server.start()
    yield server
    server.end()
