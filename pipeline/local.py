"""`LocalRunner`: the graph in this process, one clip after another: the oracle of the others."""

from __future__ import annotations

import time

import torch

from pipeline.denoise import Denoiser
from pipeline.develop import Developer
from pipeline.documents import Commit, Failure, describe_failure
from pipeline.encode import Encoder
from pipeline.errors import RunEndingError
from pipeline.graph import Graph
from pipeline.inputs import Inputs
from pipeline.ledger import Ledger
from pipeline.model import resolve_checkpoint
from pipeline.publish import Denoised, Publisher
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest


class LocalRunner:
    """All stages in one process, as the recipe's first gang shape would run them."""

    def __init__(self, recipe: Recipe, model_fingerprint: str, ledger: Ledger) -> None:
        """Load all stages' weights."""
        self._shape = recipe.gangs[0]
        self._ledger = ledger
        self._inputs = Inputs(ledger.store)
        torch.set_num_threads(self._shape.threads)
        graph = Graph(recipe.model, resolve_checkpoint(recipe.model))
        self._encoder = Encoder(graph, recipe.encode.device)
        self._denoiser = Denoiser(graph, self._shape.device)
        develop = recipe.develop
        developer = Developer(graph, recipe.finish, develop.device, develop.onednn)
        self._publisher = Publisher(recipe, developer, model_fingerprint, ledger)

    def render(self, clip_id: str, request: RenderRequest) -> Commit | Failure:
        """Render and commit one clip; what goes wrong with it is recorded and returned.

        Raises:
            RunEndingError: no clip is to blame.
        """
        stage = "encode"
        began = time.perf_counter()
        try:
            opening = self._inputs.read_opening(request)
            conditioning = self._encoder.encode(request, opening=opening)
            encoded = time.perf_counter()
            stage = "denoise"
            session = self._denoiser.start(request, conditioning)
            session.advance(session.num_steps)
            denoised_s = time.perf_counter() - encoded
            denoised = Denoised(
                latents=session.latents().to_bytes(),
                gang="local",
                device_seconds=denoised_s,
                timings={"encode": encoded - began, "denoise": denoised_s},
            )
            stage = "develop"
            return self._publisher.publish(clip_id, request, denoised)
        except RunEndingError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises is this clip's failure
            failure = describe_failure(clip_id, stage, error)
            self._ledger.record_failure(failure)
            return failure
