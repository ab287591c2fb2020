"""What the tests of the graph share: requests, graphs and whole clips of the tiny families."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.denoise import Denoiser, DenoiseSession
from pipeline.develop import Decoded, Decoder
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.handoff import Conditioning, Latents
from pipeline.recipe import Dtype, ModelSpec
from pipeline.request import RenderRequest

if TYPE_CHECKING:
    from tests.support.families import Family

PROMPT = 'a "red" bottle turns on a table'
NEGATIVE_PROMPT = "blurry"


def request_of(family: Family, **changes: Any) -> RenderRequest:
    """Return the family's own small clip as a request."""
    names = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale", "fps")
    fields = {name: getattr(family, name) for name in names}
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "seed": 3}
    return RenderRequest(**{**fields, **texts, **changes})


def model_of(family: Family, folder: Path, dtype: Dtype = "float32") -> ModelSpec:
    """Return a recipe's [model] for a family's checkpoint."""
    return ModelSpec(checkpoint=str(folder), dtype=dtype, **family.model)


class Staged:
    """A family's three stages, each loaded when first used."""

    def __init__(self, family: Family, folder: Path, dtype: Dtype = "float32") -> None:
        """Cut the checkpoint's blocks."""
        self.family = family
        self.folder = folder
        self.inputs = family.inputs()
        self.graph = Graph(model_of(family, folder, dtype), folder, self.inputs)

    @cached_property
    def encoder(self) -> Encoder:
        """The encode stage."""
        return Encoder(self.graph)

    @cached_property
    def denoiser(self) -> Denoiser:
        """The denoise stage."""
        return Denoiser(self.graph)

    @cached_property
    def decoder(self) -> Decoder:
        """The decode stage."""
        return Decoder(self.graph)

    def encode(self, request: RenderRequest) -> Conditioning:
        """Return the conditioning, after a way through bytes."""
        return Conditioning.from_bytes(self.encoder.encode(request, self.inputs).to_bytes())

    def denoise(self, request: RenderRequest) -> Latents:
        """Return the latents of a clip rendered alone, without a stop."""
        return finish(self.denoiser.start(request, self.encode(request)))


def finish(session: DenoiseSession) -> Latents:
    """Make all steps that remain; return the latents, after a way through bytes."""
    session.advance(session.num_steps)
    return Latents.from_bytes(session.latents().to_bytes())


def save_all_along(session: DenoiseSession) -> list[bytes]:
    """Make all steps of a session; return its snapshot before each."""
    snapshots: list[bytes] = []
    while not session.done:
        snapshots.append(session.snapshot())
        session.advance(1)
    return snapshots


def read(decoded: Decoded) -> NDArray[np.uint8]:
    """Return all frames of a clip."""
    return np.concatenate(list(decoded.frames))


def quantized(frames: NDArray[Any]) -> NDArray[np.uint8]:
    """Return frames between 0 and 1 as 8-bit levels."""
    return np.rint(frames.clip(0, 1) * 255).astype(np.uint8)


def assert_same(a: Any, b: Any) -> None:
    """Compare two trees of tensors to the bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b
