"""A pool in the tests' cluster, as a tenant of it sees it, and clips to give it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, UserCodeException

from cluster.answers import NoGangError, PoolProgress, PutOffError, Rendered
from cluster.client import PoolClient, join_pool
from jobs.plan import find_model
from pipeline.checkpoints import Checkpoints
from pipeline.denoise import Denoiser
from pipeline.encode import Encoder
from pipeline.identity import digest
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

WAIT_S = 180.0


class Refusing:
    """A pool without a gang for anybody."""

    WHY = "no gang like wide-0 can be started: no place"

    async def render(self, *_: object, **__: object) -> None:
        """Refuse a clip."""
        raise NoGangError(self.WHY)


class PuttingOff:
    """A pool that has finished latents of every clip, and lets the impatient come again for one."""

    def __init__(self, latents: dict[str, bytes], put_off: str) -> None:
        self._latents, self._put_off = latents, put_off

    async def render(
        self, checkpoints: Checkpoints, clip_id: str, *_: object, is_patient: bool
    ) -> Rendered:
        """Answer at once."""
        if clip_id == self._put_off and not is_patient:
            raise PutOffError(clip_id)
        return Rendered([ray.put(self._latents[clip_id])], (), "single-0", "", 1, 0.0, 0.0)


class Breaking:
    """A pool that gives a clip no end."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def render(self) -> None:
        """Raise the error, while another is handled; or die."""
        try:
            raise KeyError("nothing that anybody needs to know")
        except KeyError:
            if self.error:
                raise self.error  # noqa: B904 - so that both are told
            os._exit(1)


def ask_as_ray_data(pool: Any) -> None:
    """Ask a pool for a clip; what it raises is wrapped as Ray Data wraps what its actors raise."""
    try:
        ray.get(pool.render.remote())
    except Exception as error:
        raise UserCodeException("UDF failed to process a data block.") from error


@dataclass(frozen=True)
class Clip:
    """A clip, and what it is when nothing disturbs it."""

    key: str
    request: RenderRequest
    conditioning: bytes
    latents: bytes


def make_clip(name: str, steps: int, encoder: Encoder, denoiser: Denoiser) -> Clip:
    """Return a clip, made in this process."""
    request = RenderRequest(
        prompt=f"a red ball, {name}",
        width=64,
        height=64,
        num_frames=17,
        fps=8.0,
        seed=7,
        num_inference_steps=steps,
        guidance_scale=4.0,
    )
    conditioning = encoder.encode(request)
    with denoiser.start(request, conditioning) as session:
        session.advance(steps)
        latents = session.latents().to_bytes()
    return Clip(digest(name), request, conditioning.to_bytes(), latents)


@dataclass
class Tenant:
    """A tenant of a pool."""

    client: PoolClient

    def render(self, clip: Clip, **how: Any) -> Any:
        """Ask for a clip; returns a reference to its end."""
        return self.client.render(clip.key, clip.request, clip.conditioning, **how)

    def look(self) -> PoolProgress:
        """Return how it goes."""
        return ray.get(self.client.progress(), timeout=WAIT_S)

    def steps_of(self, clip: Clip) -> int:
        """Return how many steps a gang has made of a clip that it has."""
        clips = self.look().clips
        return clips[clip.key].step if clip.key in clips else 0

    def leave(self) -> PoolProgress | None:
        """Leave the pool."""
        return ray.get(self.client.leave(), timeout=WAIT_S)

    def saved(self, clip: Clip) -> list[str]:
        """Return the keys of what is saved of a clip."""
        keys = self.client.checkpoints.store.list("checkpoints")
        return [key for key in keys if clip.key in key]


@contextmanager
def keep_gangs(recipe: Recipe, output: Path) -> Iterator[None]:
    """Be a tenant of the pool that runs by a recipe share: its gangs take long to start."""
    found, fingerprint = find_model(recipe)
    client = join_pool(found, Checkpoints(ObjectStore(output), fingerprint))
    yield
    with suppress(RayError):  # where it was not heard of for `pool.tenant_limit_s`
        ray.get(client.leave(), timeout=WAIT_S)


class Unreadable(Recipe):
    """What no worker can read: as where a module that it needs can't be imported there."""

    def __reduce__(self) -> tuple[object, ...]:
        return fail, ()


def fail() -> None:
    """Fail as an import would."""
    raise ImportError("no such module")


def find_pid(_: object) -> int:
    """Return the process id of an actor that is asked for it."""
    return os.getpid()
