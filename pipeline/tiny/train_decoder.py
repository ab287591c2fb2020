"""Stage `decoder`: a last pass over the VAE's decoder alone.

The encoder stays as it is, and with it every cached latent and the transformer; the decoder
learns to draw sharper from the same latents, a little noise on them as the transformer leaves.
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from pipeline.tiny.cache import trained_vae
from pipeline.tiny.models import LATENT_CHANNELS, build_vae
from pipeline.tiny.optim import optimizers
from pipeline.tiny.stage import Budget, averaged, torch_rng, train
from pipeline.tiny.train_vae import batch, error
from pipeline.tiny.whole import decode_whole, encode_whole

SEED = 71
NOISE = 0.05
"""Deviation of the noise on the latents, raw units."""


def run(work: Path, budget: Budget, *, seed: int = SEED) -> None:
    """Train the decoder in `work/decoder`, from where the stages before left it."""
    torch.manual_seed(seed)
    vae = trained_vae(work)
    drawing = nn.ModuleList([vae.decoder, vae.post_quant_conv]).train().requires_grad_(True)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        video = batch(seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = encode_whole(vae, video)[:, :LATENT_CHANNELS].float()
            noise = torch.randn(latents.shape, generator=torch_rng(seed, step))
            made = decode_whole(vae, latents + NOISE * noise).float()
        loss, psnr = error(made, video)
        return loss, {"psnr": psnr}

    made = optimizers(drawing.parameters(), muon_rate=2e-3, adam_rate=5e-4)
    train(work / "decoder", drawing, made, step_loss, budget)


def finished_vae(work: Path) -> AutoencoderKLWan:
    """The VAE with the last pass's decoder, where there has been one."""
    vae = trained_vae(work)
    if (work / "decoder" / "state.pt").exists():
        drawing = build_vae()
        averaged(work / "decoder", nn.ModuleList([drawing.decoder, drawing.post_quant_conv]))
        vae.decoder.load_state_dict(drawing.decoder.state_dict())
        vae.post_quant_conv.load_state_dict(drawing.post_quant_conv.state_dict())
    return vae
