"""Every stage trains a few steps, resumes, and ends in a checkpoint that loads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline
from safetensors.torch import load_file
from transformers import AutoTokenizer

from pipeline.tiny import cache, train_decoder, train_text, train_transformer, train_vae
from pipeline.tiny.begin import begin_with
from pipeline.tiny.models import LATENT_CHANNELS, build_text_encoder, build_transformer, build_vae
from pipeline.tiny.optim import Muon
from pipeline.tiny.stage import Budget, plateau
from pipeline.tiny.text import LONGEST, build_tokenizer
from pipeline.tiny.train import export
from pipeline.tiny.train_transformer import (
    KEPT,
    Batch,
    Objective,
    encode_words,
    favour_words,
    weigh,
)
from pipeline.tiny.whole import decode_whole, encode_whole

pytestmark = pytest.mark.usefixtures("one_thread")


def few(steps: int) -> Budget:
    return Budget(steps, save_every=1, log_every=1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages, a step or two each."""
    folder = tmp_path_factory.mktemp("work")
    train_vae.run(folder, few(1))
    train_text.run(folder, few(2), batch=4)
    cache.run(folder, 4, shard=4)
    train_transformer.run(folder, few(2), batch=2)
    train_decoder.run(folder, few(1))
    return folder


def test_each_stage_leaves_a_checkpoint_and_a_log(work: Path) -> None:
    for stage in ("vae", "text", "transformer", "decoder"):
        assert (work / stage / "state.pt").exists()
        assert "loss" in (work / stage / "log.jsonl").read_text()
    log = (work / "transformer" / "log.jsonl").read_text()
    assert "right" in log
    assert "swapped" in log


def test_a_stage_resumes_to_the_same_weights(tmp_path: Path) -> None:
    train_text.run(tmp_path / "whole", few(3), batch=4)
    # The rate depends on the budget alone, so a run cut short by time goes on as it was.
    cut = Budget(3, save_every=1, log_every=1, stop_after_minutes=0)
    train_text.run(tmp_path / "cut", cut, batch=4)
    first = torch.load(tmp_path / "cut/text/state.pt", weights_only=True)
    assert first["step"] == 1
    train_text.run(tmp_path / "cut", few(3), batch=4)
    states = [tmp_path / name / "text/state.pt" for name in ("whole", "cut")]
    whole, resumed = (torch.load(path, weights_only=True) for path in states)
    assert resumed["step"] == whole["step"] == 3
    for name, value in whole["module"].items():
        assert torch.equal(value, resumed["module"][name]), name


def test_the_export_is_a_checkpoint_of_the_usual_form(work: Path, tmp_path: Path) -> None:
    export(work, tmp_path)
    pipe = WanVACEPipeline.from_pretrained(str(tmp_path), dtype=torch.float32)
    assert len(pipe.vae.config.latents_mean) == LATENT_CHANNELS
    assert min(pipe.vae.config.latents_std) > 0
    assert pipe.scheduler.config.flow_shift == 3.0
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    made = pipe("빨간 공", num_frames=5, height=32, width=48, num_inference_steps=2,
                generator=generator, output_type="np")  # fmt: skip
    assert made.frames[0].shape == (5, 32, 48, 3)


def test_training_goes_on_from_a_checkpoint(work: Path, tmp_path: Path) -> None:
    export(work, tmp_path / "checkpoint")
    begin_with(tmp_path / "checkpoint", tmp_path / "on", text_steps=2)
    train_vae.run(tmp_path / "on", Budget(1, rate=0.0))
    train_text.run(tmp_path / "on", few(2), batch=4)
    cache.run(tmp_path / "on", 4, shard=4)
    train_transformer.run(tmp_path / "on", Budget(1, rate=0.0), batch=2)
    export(tmp_path / "on", tmp_path / "again")
    for part in ("vae", "text_encoder", "transformer"):
        (file,) = (tmp_path / "again" / part).glob("*.safetensors")
        before = load_file(tmp_path / "checkpoint" / part / file.name)
        for name, value in load_file(file).items():
            assert torch.equal(value, before[name]), (part, name)


def test_shards_are_the_same_when_made_again(work: Path) -> None:
    saved = cache.load_shards(work)[0]
    again = cache.make_shard(cache.trained_vae(work), cache.SEED, 0, 1, 4)
    assert saved["captions"] == again["captions"]
    assert torch.allclose(saved["latents"].float(), again["latents"].float(), atol=2e-2)


def test_the_whole_clip_encodes_as_its_chunks_do() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    video = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    with torch.no_grad():
        moments = encode_whole(vae, video)
        assert torch.allclose(moments, vae._encode(video), atol=1e-5)
        latents = moments[:, :LATENT_CHANNELS]
        made = decode_whole(vae, latents).clamp(-1, 1)
        assert torch.allclose(made, vae.decode(latents).sample, atol=1e-5)


def test_one_padding_slot_equals_all_of_them() -> None:
    """Training's short captions give what the pipelines' 512 slots give."""
    torch.manual_seed(0)
    tokenizer, encoder = build_tokenizer(300), build_text_encoder().eval()
    model = build_transformer()
    words = encode_words(tokenizer, encoder, ["a red ball", "ein blauer Schuh, ganz langsam"])
    favour_words(model, words.words())
    latents, control = torch.randn(2, 16, 2, 4, 4), torch.randn(2, 96, 2, 4, 4)
    padded = torch.zeros(2, LONGEST, words.states.shape[2])
    padded[:, : words.states.shape[1]] = words.states
    call = {"timestep": torch.tensor([700.0, 300.0]), "control_hidden_states": control}
    with torch.no_grad():
        long = model(latents, encoder_hidden_states=padded, **call).sample
        objective = Objective(model, lambda _: words)
        objective.processor.bias = words.bias
        short = model(latents, encoder_hidden_states=words.states, **call).sample
    assert torch.allclose(long, short, atol=2e-4)


def test_what_is_given_weighs_more_in_the_loss() -> None:
    """Of two latent frames the first is given: what is wrong in it alone counts threefold."""
    mask = torch.ones(1, 64, 2, 2, 2)
    mask[:, :, 0] = 0
    control = torch.cat([torch.zeros(1, 2 * LATENT_CHANNELS, 2, 2, 2), mask], dim=1)
    batch = Batch(torch.zeros(1, LATENT_CHANNELS, 2, 2, 2), control, [""], [""])
    assert batch.given()[0, 0, :, 0, 0].tolist() == [1, 0]
    losses: list[float] = []
    for frame in range(2):
        error = torch.zeros_like(batch.latents)
        error[:, :, frame] = 1
        losses.append(float(weigh(error, batch)))
    assert losses == pytest.approx([KEPT / (KEPT + 1), 1 / (KEPT + 1)])


def test_muon_steps_are_about_orthogonal() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1.0).step()
    singular = torch.linalg.svdvals(weight.detach().reshape(8, -1))
    assert singular.min() > 0.5
    assert singular.max() < 1.4


def test_rates_rise_stay_and_fall() -> None:
    rates = [plateau(p) for p in np.linspace(0, 1, 11)]
    assert rates[0] == 0
    assert rates[3] == 1
    assert rates[-1] == pytest.approx(0.02)


def test_the_tokenizer_takes_any_script(tmp_path: Path) -> None:
    from pipeline.tiny.text import save_tokenizer

    save_tokenizer(build_tokenizer(300), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    upper, lower = (tokenizer(t)["input_ids"] for t in ("A RED Ball", "a red ball"))
    assert upper == lower
    assert upper[-1] == tokenizer.eos_token_id == 1
    text = "빨간 병이 왼쪽으로 🚀"
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert decoded.strip() == text
