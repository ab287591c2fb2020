"""One online endpoint for all tests of it, as it takes long to start; and a browser for pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A `tests.support.online.Server` that listens."""
    from tests.support.online import Server

    server = Server(tmp_path_factory.mktemp("serve"))
    server.start()
    yield server
    server.end()


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    """The official client, with the first key."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, by playwright; its tests are skipped where it is not installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's chromium is not installed")
    from playwright.sync_api import sync_playwright

    args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    args += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=args)
        yield running
        running.close()
