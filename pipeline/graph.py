"""`Graph`: a checkpoint's own Modular Diffusers blocks, cut where the data is small.

Every modular video family is a row of encoder blocks, one block named `denoise`, then `decode`.
All before `denoise` is the encode stage, all after it the decode stage, so there is no table of
families here. Blocks that a clip's inputs don't call for are left out, with what they would load.
Each stage loads only its own weights; of the other stages' models it sees empty skeletons on the
meta device, since blocks derive sizes from their configuration.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.modular_pipelines.modular_pipeline import (
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from pipeline.components import (
    DAMAGE,
    TRANSFORMER,
    cannot_load,
    load_component,
    one_line,
    with_settings,
)
from pipeline.errors import UsageError
from pipeline.parallel.place import Place
from pipeline.recipe import ModelSpec
from pipeline.request import RenderRequest

StageName = Literal["encode", "denoise", "decode"]
DENOISE = "denoise"
REQUEST_INPUTS = {*RenderRequest.model_fields, "frame_rate", "generator", "output_type"}
"""The block inputs that every request brings."""
SIZE_INPUTS = {"height", "width"}
"""Handed on to the end: a conditioning image may change them."""
NEEDED = {"text_encoder", "tokenizer", "transformer", "vae", "scheduler"}
"""What every family has, by the names that diffusers gives; the index may leave out others."""
Blocks: TypeAlias = Any
"""A tree of `ModularPipelineBlocks`, which diffusers leaves untyped."""


@dataclass(frozen=True)
class Stage:
    """One stage's blocks, and the pipeline object that they find their components on."""

    blocks: Blocks
    pipeline: ModularPipeline

    def run(self, state: PipelineState, pipeline: ModularPipeline | None = None) -> None:
        """Run the blocks over `state`, with a session's own copy of the pipeline if given."""
        with torch.no_grad():
            self.blocks(pipeline or self.pipeline, state)

    def transformers(self) -> list[torch.nn.Module]:
        """Return the denoising models that are loaded: one, or one for each expert."""
        named = self.pipeline.components.items()
        return [each for name, each in named if name.startswith(TRANSFORMER) and each is not None]


class Graph:
    """The blocks of one checkpoint, declared once and driven by every runner."""

    def __init__(self, model: ModelSpec, checkpoint: Path, inputs: Iterable[str] = ()) -> None:
        """Read the checkpoint's index and cut its blocks; no weights are loaded.

        `inputs` name the block inputs that clips bring besides their request, such as `image`.

        Raises:
            UsageError: the folder is no diffusers checkpoint, its family has no modular blocks
                with a `denoise` block between encoders and decoder, or they need other inputs.
        """
        diffusers_logging.set_verbosity(CRITICAL)  # an error is raised as well as logged
        diffusers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self.model = model
        self.checkpoint = checkpoint
        self._whole = _find_pipeline(model, checkpoint)
        components = set(self._whole.component_names)
        self._check_names("components", model.components, components)
        self._check_names("dtypes", model.dtypes, components)
        configs = self._whole._config_specs  # pyright: ignore[reportPrivateUsage]
        self._check_names("configs", model.configs, set(configs))
        self._blocks = _resolve(self._whole.blocks, {*REQUEST_INPUTS, *inputs}, checkpoint.name)
        names = list(self._blocks.sub_blocks)
        inner = [i for i, name in enumerate(names) if name.split(".")[0] == DENOISE]
        if not inner or inner[-1] == len(names) - 1:
            raise UsageError(
                f"model.checkpoint: {checkpoint.name} has blocks {names}; "
                f"expected encoder blocks, then {DENOISE!r}, then a decoder"
            )
        self._names: Mapping[StageName, list[str]] = {
            "encode": names[: inner[0]],
            "denoise": names[inner[0] : inner[-1] + 1],
            "decode": names[inner[-1] + 1 :],
        }

    def blocks(self, stage: StageName) -> Blocks:
        """Return fresh blocks of one stage."""
        chosen = {name: copy.deepcopy(self._blocks.sub_blocks[name]) for name in self._names[stage]}
        blocks = SequentialPipelineBlocks.from_blocks_dict(chosen)
        for loop in find_loops(blocks):
            loop.set_progress_bar_config(disable=True)
        return blocks

    def load(self, stage: StageName, device: str = "cpu", place: Place | None = None) -> Stage:
        """Return one stage's blocks with that stage's weights on `device`.

        Main memory holds one component at a time: each is on its device before the next is read.
        At a place in a gang, a transformer's layers are this rank's share of them.

        Raises:
            UsageError: a component can't be loaded, or has no safetensors weights, or a transformer
                has no plan for the gang's layout.
        """
        blocks = self.blocks(stage)
        pipeline = type(self._whole)(blocks, str(self.checkpoint))
        if self.model.configs:
            pipeline.update_components(**self.model.configs)
        for name in pipeline.pretrained_component_names:
            spec = pipeline.get_component_spec(name)
            if spec.pretrained_model_name_or_path is None or spec.type_hint is None:
                if name in NEEDED:
                    raise UsageError(
                        f"model.checkpoint: the index of {self.checkpoint.name} has no {name}"
                    )
                continue  # the index has none, such as a second expert
            if stage == "denoise" and _is_autoencoder(spec.type_hint):
                # Read for its configuration alone; unlisted, so that `meta` isn't this stage's
                # device.
                pipeline._component_specs.pop(name)  # pyright: ignore[reportPrivateUsage]
                continue
            pipeline.update_components(
                **{name: load_component(spec, self.model, self.checkpoint, device, place)}
            )
        for name, changes in self.model.components.items():
            if name in pipeline.components:
                changed = with_settings(name, getattr(pipeline, name), changes)
                pipeline.update_components(**{name: changed})
        self._add_skeletons(pipeline)
        self._check_factors(pipeline)
        return Stage(blocks, pipeline)

    def forwarded_names(self, stage: StageName) -> tuple[set[str], set[str]]:
        """Return the names, and the kwargs types, that stages after `stage` read."""
        later: tuple[StageName, ...] = ("denoise", "decode") if stage == "encode" else ("decode",)
        inputs = [each for name in later for each in self.blocks(name).inputs]
        names = {each.name for each in inputs if each.name} | SIZE_INPUTS
        return names, {each.kwargs_type for each in inputs if each.kwargs_type}

    def _add_skeletons(self, pipeline: ModularPipeline) -> None:
        """Give `pipeline` the other stages' diffusers models, without weights."""
        whole = self._whole
        for name in whole.pretrained_component_names:
            if getattr(pipeline, name, None) is not None:
                continue
            spec = whole.get_component_spec(name)
            kind = spec.type_hint
            if spec.pretrained_model_name_or_path is None or not isinstance(kind, type):
                continue
            if issubclass(kind, ModelMixin):
                model = cast(Any, kind)
                folder = self.checkpoint / (spec.subfolder or "")
                try:
                    with torch.device("meta"):
                        skeleton = model.from_config(model.load_config(str(folder)))
                except DAMAGE as error:
                    raise cannot_load(name, self.checkpoint, error) from error
                dtype = getattr(torch, self.model.dtypes.get(name, self.model.dtype))
                setattr(pipeline, name, skeleton.to(dtype))

    def _check_factors(self, pipeline: ModularPipeline) -> None:
        """Refuse a VAE that scales otherwise than its family's blocks take it to, as Wan 2.2 5B's.

        Every clip would be denoised, at other sizes than were asked for, before that shows.
        """
        config = getattr(getattr(pipeline, "vae", None), "config", {})
        for axis in ("spatial", "temporal"):
            is_, taken = (
                config.get(f"scale_factor_{axis}"),
                getattr(pipeline, f"vae_scale_factor_{axis}", None),
            )
            if is_ and taken and is_ != taken:
                raise UsageError(
                    f"model.checkpoint: the VAE of {self.checkpoint.name} has a {axis} factor of "
                    f"{is_}, diffusers' modular blocks take it to be {taken}: they can't render it"
                )

    def _check_names(self, section: str, given: Iterable[str], known: set[str]) -> None:
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"model.{section}: {self.checkpoint.name} has no {name}{hint}")


def find_loops(blocks: Blocks) -> Iterator[LoopSequentialPipelineBlocks]:
    """Yield every denoising loop in a tree of blocks."""
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        yield blocks
        return
    for each in blocks.sub_blocks.values():
        yield from find_loops(each)


def _resolve(blocks: Blocks, given: set[str], name: str) -> Blocks:
    """Return the row of blocks that run when inputs of these names are given."""
    resolved = blocks.get_execution_blocks(**dict.fromkeys(given, True))
    if "videos" not in {each.name for each in resolved.intermediate_outputs}:
        raise UsageError(f"model.checkpoint: the blocks of {name} make no videos")
    missing = sorted({each.name for each in resolved.inputs if each.required} - given)
    if missing:
        raise UsageError(
            f"model.checkpoint: {name} also needs {', '.join(missing)} for a clip; "
            "expected one that renders from text"
        )
    return resolved


def _find_pipeline(model: ModelSpec, checkpoint: Path) -> ModularPipeline:
    """Return the whole pipeline of a checkpoint, its components' places known, none loaded."""
    try:
        if not model.blocks:
            found = ModularPipeline.from_pretrained(str(checkpoint), trust_remote_code=False)
            return cast(ModularPipeline, found)
        kind = getattr(diffusers, model.blocks, None)
        if not (isinstance(kind, type) and issubclass(kind, ModularPipelineBlocks)):
            raise UsageError(f"model.blocks: diffusers has no blocks class {model.blocks!r}")
        return cast(Blocks, kind)().init_pipeline(str(checkpoint))
    except DAMAGE as error:
        raise UsageError(
            f"model.checkpoint: no modular blocks for {checkpoint.name} ({one_line(error)}); "
            "name them by model.blocks"
        ) from error


def _is_autoencoder(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, ModelMixin) and hasattr(kind, "decode")
