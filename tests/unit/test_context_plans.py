"""What context parallelism splits, and what it refuses before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoModel,
    CogVideoXTransformer3DModel,
    HeliosTransformer3DModel,
    ModelMixin,
)

from pipeline.errors import UsageError
from pipeline.parallel.context import ContextGroup, find_context_plan
from pipeline.parallel.tensor import find_modules
from tests.support.families import FAMILIES


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_familys_plan_names_modules_that_are_there(
    checkpoint_of: Callable[[str], Path], name: str
) -> None:
    folders = [each for each in checkpoint_of(name).iterdir() if "transformer" in each.name]
    assert folders
    for folder in folders:
        model: ModelMixin = AutoModel.from_pretrained(str(folder))
        plan = find_context_plan(type(model))
        named = [each for each in (*plan.splits, *plan.gathers) if each]
        for pattern in (*plan.attentions, *named):
            assert list(find_modules(model, [pattern]))


def test_a_class_without_a_plan_is_refused() -> None:
    with pytest.raises(UsageError, match=r"CogVideoX\w+ has no plan for context .* Helios"):
        find_context_plan(CogVideoXTransformer3DModel)


def test_a_model_that_amplifies_history_is_refused() -> None:
    with torch.device("meta"):
        model = HeliosTransformer3DModel(num_layers=1, is_amplify_history=True)
    with pytest.raises(UsageError, match=r"HeliosTransformer3DModel weighs past frames"):
        ContextGroup(config=None).split_transformer(model)  # pyright: ignore[reportArgumentType]
