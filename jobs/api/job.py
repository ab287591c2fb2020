"""`JobReader`: what a call's fields ask for, as a job of the endpoint's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from jobs.api.body import parse_metadata, parse_priority, parse_request
from jobs.api.openings import OpeningReader, SourceVideo
from jobs.api.wire import ApiError
from pipeline.identity import clip_id
from pipeline.inbox import VideoJob
from pipeline.inputs import Inputs
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest


@dataclass(frozen=True)
class JobReader:
    """Reads calls for videos, and lines of batches that stand for them."""

    recipe: Recipe
    renderer: str
    """The digest that clip ids are made with."""
    inputs: Inputs
    """Where what clips begin with is kept."""
    aliases: tuple[str, ...] = ()
    """Other names by which programs ask for the recipe's model."""

    @property
    def models(self) -> tuple[str, ...]:
        """All names of the model."""
        return (self.recipe.name, *self.aliases)

    @property
    def openings(self) -> OpeningReader:
        """What reads images and videos that clips begin with."""
        return OpeningReader(self.recipe, self.inputs)

    def check_model(self, name: Any) -> str:
        """Return the model that is asked for by this name, or by none.

        Raises:
            ApiError: there is no such model.
        """
        if name not in (None, "", *self.models):
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"model: got {str(name)[:64]!r}, expected {' or '.join(map(repr, self.models))}",
                param="model",
                code="model_not_found",
            )
        return str(name or self.recipe.name)

    def read(
        self, fields: Mapping[str, Any], source: VideoJob | None = None, **known: Any
    ) -> VideoJob:
        """Return the job that fields ask for; `source` is what it is a remix of.

        `known` are the job's fields that no caller says: its `id`, its `owner` and so on.

        Raises:
            ApiError: they ask for what the model can't do.
        """
        model = self.check_model(fields.get("model"))
        asked = parse_request(fields, self.recipe)
        said = {"priority": parse_priority(fields), "metadata": parse_metadata(fields)}
        if source:
            asked = asked.model_copy(update={"opening": source.request.opening})
            said |= {"remixed_from": source.id}
        elif fields.get("input_reference") not in (None, ""):
            asked = self.openings.add_image(asked, fields["input_reference"])
        seconds = source.seconds if source else fields.get("seconds")
        return self._make(asked, model, seconds, **said, **known)

    def read_extension(
        self, fields: Mapping[str, Any], video: SourceVideo, **known: Any
    ) -> VideoJob:
        """Return the job of a video that goes on from another; `known` as for `read`.

        Raises:
            ApiError: the fields ask for what the model can't do.
        """
        said = {"priority": parse_priority(fields), "metadata": parse_metadata(fields)}
        asked = self.openings.extend(fields, video)
        return self._make(asked, self.recipe.name, None, **said, **known)

    def _make(self, asked: RenderRequest, model: str, seconds: Any, **further: Any) -> VideoJob:
        return VideoJob(
            clip_id=clip_id(asked, self.renderer),
            request=asked,
            model=model,
            seconds=f"{float(asked.duration_s if seconds in (None, '') else seconds):g}",
            size=f"{asked.width}x{asked.height}",
            **further,
        )
