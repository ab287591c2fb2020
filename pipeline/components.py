"""A checkpoint's components, each loaded whole or not at all.

Libraries make up what isn't there: weights by chance, a tokenizer to which all words are one.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import UnreachableError, UsageError
from pipeline.parallel.context import find_context_plan
from pipeline.parallel.loading import check_names, load_share
from pipeline.parallel.place import Place
from pipeline.parallel.tensor import TensorGroup
from pipeline.recipe import ModelSpec

TRANSFORMER = "transformer"
"""What diffusers names the denoising model; a second expert is `transformer_2`."""
DAMAGE = (OSError, ValueError, AttributeError, KeyError, TypeError)
"""What is raised of files that aren't there, or aren't what their names say."""


def load_component(
    spec: Any, model: ModelSpec, checkpoint: Path, device: str, place: Place | None
) -> Any:
    """Return one of a checkpoint's components, on `device` if it has weights: all of it or nothing.

    Raises:
        UsageError: it can't be loaded, or something of it is missing.
    """
    # An index may name another repository: what renders is what was fingerprinted.
    source = {"pretrained_model_name_or_path": str(checkpoint)}
    folder = checkpoint / spec.subfolder
    if not folder.is_dir():
        raise UsageError(f"model.checkpoint: {checkpoint.name} has no {spec.subfolder}")
    options: dict[str, Any] = {}
    share: TensorGroup | None = None
    kind = spec.type_hint
    if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
        dtype = getattr(torch, model.dtypes.get(spec.name, model.dtype))
        if place and spec.name.startswith(TRANSFORMER):
            if place.context:
                find_context_plan(kind)  # before anything is read
            share = place.tensor
        options = {"dtype": dtype, "use_safetensors": True}
    try:
        if share:
            return load_share(spec.type_hint, folder, options["dtype"], share, device)
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
            component = _load_whole(kind, folder, {**options, "variant": spec.variant})
            component._diffusers_load_id = spec.load_id  # as `load` does
        else:
            component = spec.load(**source, **options)
        if isinstance(component, ModelMixin) and not spec.variant:
            check_names(component, folder)
        if isinstance(component, PreTrainedTokenizerBase):
            _check_vocabulary(component, folder)
    except DAMAGE as error:
        raise cannot_load(spec.name, checkpoint, error) from error
    if isinstance(component, torch.nn.Module):
        cast(Any, component).eval().requires_grad_(False).to(device)
    return component


def with_settings(name: str, component: Any, changes: Mapping[str, Any]) -> Any:
    """Return a scheduler or guider like `component` with some settings changed."""
    if not isinstance(component, SchedulerMixin | BaseGuidance):
        raise UsageError(f"model.components.{name}: only schedulers and guiders have settings")
    config = cast(Any, component).config
    unknown = sorted(changes.keys() - config.keys())
    if unknown:
        known = ", ".join(sorted(key for key in config if not key.startswith("_")))
        raise UsageError(f"model.components.{name}: no {', '.join(unknown)}; it has {known}")
    if isinstance(component, BaseGuidance):
        return component.new(**changes)
    return cast(Any, type(component)).from_config({**config, **changes})


def cannot_load(name: str, checkpoint: Path, error: Exception) -> UsageError:
    """Return what is raised where loading a component raised `error`."""
    # Of a file that isn't there, or not as it should be, libraries give no number.
    is_systems = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
    return (UnreachableError if is_systems else UsageError)(
        f"model.checkpoint: cannot load {name} from {checkpoint.name}: {one_line(error)}"
    )


def one_line(error: Exception) -> str:
    """Return what an error says, shortened."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def _load_whole(kind: Any, folder: Path, options: Mapping[str, Any]) -> Any:
    """Return a model of transformers', which would make up weights that the files don't hold.

    Raises:
        UsageError: they lack some.
        ValueError, OSError: one of them is damaged, or isn't there.
    """
    try:
        model, found = kind.from_pretrained(str(folder), output_loading_info=True, **options)
    except OSError:
        raise
    except Exception as error:  # of any kind, as `load` knows too
        raise ValueError(str(error)) from error
    if lacking := sorted(found["missing_keys"]):
        some = ", ".join(lacking[:3])
        raise UsageError(f"model.checkpoint: {folder.name} lacks {len(lacking)} weights: {some}")
    return model


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse a tokenizer without its files, for which every word is one unknown.

    Raises:
        UsageError: none is there.
    """
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if files and not any((folder / name).is_file() for name in files):
        raise UsageError(f"model.checkpoint: {folder.name} has no {' nor '.join(files)}")
