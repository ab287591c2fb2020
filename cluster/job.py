"""`Job`: a clip that a tenant has asked for, until its answer."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from cluster.answers import Rendered
from cluster.drive import Drive, Finished, sum_up
from cluster.gang import Gang
from cluster.schedule import Task
from cluster.tenants import Tenant
from pipeline.documents import Checkpoint


def _make_future() -> asyncio.Future[Rendered]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class Job:
    """Whose it is, which gang has it, and its answer, which is given once."""

    task: Task
    tenant: Tenant
    conditioning: Any
    """Refers to packed `Conditioning`."""
    result: asyncio.Future[Rendered] = field(default_factory=_make_future)
    since: float = field(default_factory=time.monotonic)
    """When it was asked for, on this process's clock."""
    is_patient: bool = True
    """Whether it waits while its gangs find no place; else it is put off, to be asked for later."""
    over: Literal["", "cancelled", "left"] = ""
    """Why it is to be made no further."""
    drive: Drive | None = None
    off_gang: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no gang has it."""

    def __post_init__(self) -> None:
        """No gang has it yet."""
        self.off_gang.set()

    @property
    def losses(self) -> tuple[str, ...]:
        """How it lost gangs, each time."""
        return self.tenant.losses.get(self.task.key.clip_id, ())

    def lose(self, reason: str) -> int:
        """Note that it has lost a gang; return how many in all."""
        self.tenant.losses[self.task.key.clip_id] = (*self.losses, reason)
        return len(self.losses)

    def succeed(self, gang: Gang, finished: Finished) -> None:
        """Answer with what a gang has made."""
        self._answer(
            Rendered(
                latents=[finished.latents],
                reasons=self.losses,
                gang=gang.name,
                attempts=len(self.losses) + 1,
                **finished.spent._asdict(),
            )
        )

    def reuse(self, checkpoint: Checkpoint, latents: bytes) -> None:
        """Answer with what an earlier attempt, of this run or another, has finished and saved."""
        self._answer(
            Rendered(
                latents=[ray.put(latents)],
                reasons=self.losses,
                gang="saved",
                attempts=len(self.losses) + 1,
                **sum_up(checkpoint)._asdict(),
            )
        )

    def fail(self, reason: str, attempts: int, gang: Gang | None = None) -> None:
        """Answer without latents; its losses are told, and forgotten."""
        chain = self.tenant.losses.pop(self.task.key.clip_id, ())
        self._answer(
            Rendered(
                latents=[],
                reasons=(*chain, reason),
                gang=gang.name if gang else "",
                layout=str(gang.shape.layout) if gang else "",
                attempts=attempts,
                denoise_s=0.0,
                device_seconds=0.0,
            )
        )

    def give_up(self, error: Exception) -> None:
        """Raise at whoever awaits its answer."""
        if not self.result.done():
            self.result.set_exception(error)

    def _answer(self, rendered: Rendered) -> None:
        if not self.result.done():
            self.result.set_result(rendered)
