"""`Family`: a model family as a tiny random checkpoint of its real classes, and how to render it.

Everything is made in code from a seed: nothing is downloaded, and two builds hold the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

SIZES = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale")


def no_inputs() -> dict[str, Any]:
    """Return the extra inputs of a family that needs none."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: its checkpoint, a small valid clip, and diffusers' own rendering of it.

    `model` is a recipe's [model] section without the checkpoint: `blocks` and `configs`, where
    diffusers' automatic mapping doesn't find the blocks by itself. `inputs` returns what the
    blocks need besides a request's fields, such as the first image. `classic` renders frames with
    the classic pipeline, given the folder and the call.
    """

    name: str
    build: Callable[[Path], None]
    classic: Callable[[Path, dict[str, Any]], np.ndarray]
    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    fps: float
    size_multiple: int
    frame_multiple: int
    audio_rate: int | None = None
    """Samples a second, where the family yields sound."""
    model: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Any]] = no_inputs
    tolerance: float = 0.0
    """Largest difference between the classic pipeline's frames and the modular ones."""

    @property
    def audio(self) -> bool:
        """Whether the family yields sound."""
        return self.audio_rate is not None

    def reference(
        self, folder: Path, prompt: str, negative_prompt: str = "", seed: int = 0, **sizes: Any
    ) -> np.ndarray:
        """Return the frames as the classic pipeline renders them, shaped (F, H, W, 3), in [0, 1].

        `sizes` replace the family's own (`width`, `num_frames`, `guidance_scale`, …).
        """
        call = self._call(prompt, negative_prompt, sizes)
        return self.classic(folder, {**call, "generator": seeded(seed)})

    def render(
        self, folder: Path, prompt: str, negative_prompt: str = "", seed: int = 0, **sizes: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the frames, as `reference`, and the sound, shaped (channels, samples), or None.

        Both by the whole modular pipeline, uncut. It can't do a guidance scale of 1 for all
        families: where encoder and denoiser share a guider, no negative embeddings are made.
        """
        call = self._call(prompt, negative_prompt, sizes)
        pipe = self.load(folder)
        set_guidance(pipe, call.pop("guidance_scale"))
        outputs = ["videos", "audio"] if self.audio else ["videos"]
        made = pipe(**call, generator=seeded(seed), output=outputs, output_type="np")
        return made["videos"][0], made["audio"][0].numpy() if self.audio else None

    def load(self, folder: Path) -> Any:
        """Return the whole modular pipeline with its weights loaded in float32."""
        import diffusers
        import torch

        blocks = self.model.get("blocks")
        pipe = (
            getattr(diffusers, blocks)().init_pipeline(str(folder))
            if blocks
            else diffusers.ModularPipeline.from_pretrained(str(folder))
        )
        pipe.update_components(**self.model.get("configs", {}))
        index = diffusers.DiffusionPipeline.load_config(folder)
        names = [name for name in pipe.pretrained_component_names if index.get(name, [None])[0]]
        pipe.load_components(names=names, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _call(self, prompt: str, negative_prompt: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in SIZES}
        texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        return {**own, **sizes, **texts, **self.inputs()}


def set_guidance(pipe: Any, scale: float) -> None:
    """Give every guider of a modular pipeline this guidance scale, but for audio's own."""
    for name, component in pipe.components.items():
        if name.startswith("guider"):
            pipe.update_components(**{name: component.new(guidance_scale=scale)})


def seeded(seed: int) -> torch.Generator:
    """Return a CPU generator that starts from `seed`."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def randomize(module: torch.nn.Module, seed: int, gain: float = 1.0) -> Any:
    """Give every parameter a random value, and return `module` for evaluation.

    Matrices keep the scale of what goes through them (times `gain`); what a model initialises to
    zero or one, such as gates, tables and norms, gets values too, so that a mistake in any of
    them shows in the output.
    """
    import torch

    generator = seeded(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.numel() > value.shape[0]:
            noise *= gain / value[0].numel() ** 0.5
        elif name.endswith("bias"):
            noise *= 0.05
        else:
            noise = 1 + 0.2 * noise
        value.data.copy_(noise)
    return module.eval()


def scale_latents(vae: Any, seed: int) -> Any:
    """Give a VAE's mean and deviation of latents values other than zero and one."""
    import torch

    generator = seeded(seed + 100)
    vae.latents_mean.copy_(0.3 * torch.randn(vae.latents_mean.shape, generator=generator))
    vae.latents_std.copy_(0.8 + 0.4 * torch.rand(vae.latents_std.shape, generator=generator))
    return vae


def classic_frames(folder: Path, call: dict[str, Any]) -> np.ndarray:
    """Return the frames that the classic pipeline of the checkpoint's index renders."""
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe(**call, output_type="np").frames[0]
