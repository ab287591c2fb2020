"""Calls that go through to their end, whoever has asked for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_begun = set[asyncio.Task[Any]]()
"""A loop itself keeps no hold of its tasks."""


def unbroken(
    method: Callable[_P, Coroutine[Any, Any, _T]],
) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Have a call go on where its caller is cancelled.

    Ray Serve cancels a call, and those that it has made, once an HTTP client has gone away. What
    writes to the store and then remembers that it did must not be cut off between the two.
    """

    @wraps(method)
    async def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        task = asyncio.create_task(method(*args, **kwargs))
        _begun.add(task)
        task.add_done_callback(_begun.discard)
        return await asyncio.shield(task)

    return call
