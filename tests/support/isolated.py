"""Namespaces of one's own for hosts on this machine; see `tests.support.pods`."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

ISOLATED = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
TOOLS = ("unshare", "nsenter", "ip", "pgrep")


def need_namespaces(*tools: str) -> None:
    """Skip a test where they, or these tools besides, are not to be had."""
    needed = (*TOOLS, *tools)
    if os.getuid() != 0 or not all(map(shutil.which, needed)) or not _can_isolate():
        pytest.skip(f"needs root, network namespaces, and {', '.join(needed)}")


def _can_isolate() -> bool:
    call = [*ISOLATED, "ip", "link", "add", "pods", "type", "bridge"]
    return subprocess.run(call, capture_output=True, check=False).returncode == 0
