"""A recipe's model: found, fingerprinted, and the same for all who load it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from jobs.plan import find_model, plan_call
from jobs.recipes import find_recipe
from pipeline.errors import UnreachableError, UsageError
from pipeline.model import fingerprint_model, pin_model, resolve_checkpoint
from pipeline.recipe import ModelSpec
from tests.support.command import write_table
from tests.support.hub import make_hub

EMBEDDED = resolve_checkpoint(find_recipe().model)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "model.safetensors").write_bytes(b"weights")
    (folder / "model_index.json").write_text("{}")
    return folder


def test_a_fingerprint_follows_content_not_place(checkpoint: Path, tmp_path: Path) -> None:
    spec = ModelSpec(checkpoint="x")
    first = fingerprint_model(spec, checkpoint)
    (checkpoint / "README.md").write_text("not part of it")
    (checkpoint / "single-file.safetensors").write_bytes(b"the same model, which nothing loads")
    moved = checkpoint.rename(tmp_path / "elsewhere")
    assert fingerprint_model(spec, moved) == first
    assert fingerprint_model(ModelSpec(checkpoint="y", revision="z"), moved) == first
    assert fingerprint_model(ModelSpec(checkpoint="x", dtype="float32"), moved) != first
    (moved / "vae" / "model.safetensors").write_bytes(b"Weights")
    assert fingerprint_model(spec, moved) != first


def test_a_hub_blob_counts_by_its_name(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "vae" / "model.safetensors"
    first = fingerprint_model(ModelSpec(checkpoint="x"), checkpoint)
    blob = tmp_path / "9d9f3b4e2ac2cb1a3f3d8d5f9a7ad1f5b1b8e5c06d2a8dfb3df6d9a6ce9e45aa"
    weights.rename(blob)
    weights.symlink_to(blob)
    assert fingerprint_model(ModelSpec(checkpoint="x"), checkpoint) != first


def test_a_component_that_is_a_link_is_part_of_it(checkpoint: Path, tmp_path: Path) -> None:
    """As where a transformer that was trained on stands beside the others of its base model."""
    spec = ModelSpec(checkpoint="x")
    first, pinned = fingerprint_model(spec, checkpoint), pin_model(spec, checkpoint)
    (checkpoint / "vae").rename(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"Weights!")
    (checkpoint / "vae").symlink_to("../one")
    assert fingerprint_model(spec, checkpoint) == first
    assert pin_model(spec, checkpoint) == pinned
    (checkpoint / "vae").unlink()
    (checkpoint / "vae").symlink_to("../other")
    assert fingerprint_model(spec, checkpoint) != first
    assert pin_model(spec, checkpoint) != pinned


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    spec = ModelSpec(checkpoint="x")
    with pytest.raises(UsageError, match="no folder at"):
        fingerprint_model(spec, tmp_path / "none")
    (tmp_path / "model.bin").write_bytes(b"pickle")
    (tmp_path / "model.safetensors").write_bytes(b"of no component")
    with pytest.raises(UsageError, match=r"holds no \*\.safetensors"):
        fingerprint_model(spec, tmp_path)


def test_checkpoints_on_this_machine(tmp_path: Path) -> None:
    assert resolve_checkpoint(ModelSpec(checkpoint=str(tmp_path))) == tmp_path.resolve()
    inside = resolve_checkpoint(ModelSpec(checkpoint="package:pipeline.tiny/checkpoint"))
    assert inside.parts[-3:] == ("pipeline", "tiny", "checkpoint")
    with pytest.raises(UsageError, match="no package 'nowhere'"):
        resolve_checkpoint(ModelSpec(checkpoint="package:nowhere/checkpoint"))
    for missing in ("./a/b", "/none", "a/b/c", "plain"):
        with pytest.raises(UsageError, match="no folder at"):
            resolve_checkpoint(ModelSpec(checkpoint=missing))


def test_weights_that_no_component_has_are_not_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {
        "model_index.json": True,
        "transformer/config.json": True,
        "transformer/diffusion_pytorch_model-00001-of-00008.safetensors": True,
        "transformer/diffusion_pytorch_model.safetensors.index.json": True,
        "tokenizer/tokenizer.model": True,
        "text_encoder/pytorch_model.bin": False,
        "ltx-2-19b-distilled-fp8.safetensors": False,
        "README.md": False,
    }
    fetched: list[str] = []

    def download(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        fetched.extend(filter_repo_objects(files, allow_patterns=allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_checkpoint(ModelSpec(checkpoint="somebody/something")) == tmp_path
    assert fetched == [name for name, is_needed in files.items() if is_needed]


def answer_of(status: int) -> HfHubHTTPError:
    request = httpx2.Request("GET", "http://hub.invalid/")
    return HfHubHTTPError("no", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer_of(404), UsageError),
        (answer_of(503), UnreachableError),
        (LocalEntryNotFoundError("offline"), UnreachableError),
        (ConnectionResetError("reset"), UnreachableError),
    ],
)
def test_a_hub_that_is_away_is_told_from_one_that_refuses(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[UsageError]
) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UsageError, match="could not be fetched from the hub") as caught:
        resolve_checkpoint(ModelSpec(checkpoint="somebody/something"))
    assert type(caught.value) is kind


def test_a_cache_that_is_amiss_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = make_hub(tmp_path, "acme/tiny", EMBEDDED)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (place,) = hub.cache.glob("*/refs/main")
    place.unlink()
    place.mkdir()  # what a user may not write to, root may
    with pytest.raises(UsageError, match=f"{place}.*HF_HOME") as caught:
        resolve_checkpoint(ModelSpec(checkpoint="acme/tiny"))
    assert "from the hub" not in str(caught.value)
    assert type(caught.value) is UsageError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/models/hub"), UsageError),
        (OSError(errno.ENOSPC, "No space left on device"), UnreachableError),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/models/hub/x"), UnreachableError),
    ],
)
def test_a_full_cache_may_have_room_again(
    monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[UsageError]
) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/models/hub")
    with pytest.raises(UsageError, match=f"/models/hub.*{error.strerror}.*HF_HOME") as caught:
        resolve_checkpoint(ModelSpec(checkpoint="acme/tiny"))
    assert type(caught.value) is kind


def test_a_run_keeps_to_the_commit_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = make_hub(tmp_path, "acme/tiny", EMBEDDED)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball"])
    recipe = find_recipe(overrides=["model.checkpoint=acme/tiny"])
    call = plan_call([table], recipe)
    hub.move()
    assert resolve_checkpoint(call.recipe.model).name == hub.first
    assert find_model(call.recipe) == (call.recipe, call.model_fingerprint)
    other, fingerprint = find_model(recipe)
    assert other.model.revision == hub.second
    assert fingerprint != call.model_fingerprint


def test_a_folder_is_the_same_from_wherever_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "here" / "model")
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "link")
    recipe, _ = find_model(find_recipe(overrides=["model.checkpoint=model"]))
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint(recipe.model).samefile("here/model")
    monkeypatch.chdir(tmp_path / "here")
    again, _ = find_model(find_recipe(overrides=["model.checkpoint=./model"]))
    assert again.model.files_digest == recipe.model.files_digest


def test_weights_that_are_others_than_at_first_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "transformer").mkdir(parents=True)
    file = folder / "transformer" / "model.safetensors"
    weights = {f"block.{n}": torch.randn(64, 64) for n in range(8)} | {"bias": torch.zeros(1)}
    save_file(weights, file)
    pinned = pin_model(ModelSpec(checkpoint=str(folder)), folder)
    for name, each in weights.items():
        save_file(weights, file)  # the same ones again
        assert resolve_checkpoint(pinned) == folder
        save_file({**weights, name: each + 0.01}, file)
        with pytest.raises(UsageError, match="doesn't hold the files that were found at first"):
            resolve_checkpoint(pinned)


@pytest.mark.parametrize(
    "damaged", [b"", b"short", b"\xff" * 100, (9).to_bytes(8, "little") + b'{"a": []}']
)
def test_files_that_are_no_weights_are_for_whoever_loads_them_to_tell_of(
    checkpoint: Path, damaged: bytes
) -> None:
    (checkpoint / "vae" / "model.safetensors").write_bytes(damaged)
    pinned = pin_model(ModelSpec(checkpoint=str(checkpoint)), checkpoint)
    assert resolve_checkpoint(pinned) == checkpoint
    (checkpoint / "model_index.json").write_text('{"another": 1}')
    with pytest.raises(UsageError, match="every node needs the same ones"):
        resolve_checkpoint(pinned)


def test_a_recipe_with_a_digest_is_fetched_as_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Configurations come first, and are not all that the digest is of."""
    folder = shutil.copytree(EMBEDDED, tmp_path / ("a" * 40))
    sketch = tmp_path / ("b" * 40)
    sketch.mkdir()
    shutil.copy(folder / "model_index.json", sketch)

    def download(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        is_whole = any(each.endswith(".safetensors") for each in allow_patterns)
        return str(folder if is_whole else sketch)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = pin_model(ModelSpec(checkpoint="acme/tiny"), folder)
    recipe = find_recipe().model_copy(update={"model": model})
    assert find_model(recipe)[0].model.files_digest == model.files_digest
