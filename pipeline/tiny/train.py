"""Make the embedded model's weights, stage by stage. `--help` says how.

python -m pipeline.tiny.train all --work out/tiny
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

from pipeline.tiny import CHECKPOINT, cache, train_decoder, train_text, train_transformer, train_vae
from pipeline.tiny.assemble import save_checkpoint
from pipeline.tiny.begin import begin_with
from pipeline.tiny.stage import Budget
from pipeline.tiny.text import build_tokenizer
from pipeline.tiny.together import run_together

GUIDE = """\
stages, in order, and about how long each takes on two cores with nothing beside it:
  vae          the autoencoder; its PSNR caps all that follows       ~ 100 min
  text         the text encoder alone, on captions' attributes       ~ 5 min
  cache        clips as latents with captions and VACE conditions    ~ 10 min
  transformer  flow matching on the cache                            ~ 150 min
  decoder      a last pass over the VAE's decoder (optional)         ~ 5 min
  export       write the checkpoint folder                           seconds
  all          every stage above, one after another                  ~ 5 h
  begin        instead of starting anew: the shipped weights as what  seconds
               `vae` and `transformer` train on from, and a text encoder
               that is done; then run those with --rate 0.5, and `cache`

Every stage resumes from its folder in --work: run the same command again. A larger --steps
goes on from where a smaller one ended; --minutes ends a run early with a checkpoint. Losses
are in WORK/STAGE/log.jsonl. The transformer's log has `right`, `swapped` and `empty` every 50
steps: its loss at the noisiest with the right, a colour-swapped and an empty caption. If they
don't part within a few hundred steps, it is ignoring the words, and more steps won't help.
"""

STEPS = {"vae": 9600, "text": 1000, "transformer": 15_500, "decoder": 500}
"""What the shipped weights took, in two goes and without the last."""
CLIPS = 12_000


def work_on(stage: str, work: Path, budget: Budget, clips: int) -> None:
    """Run one training stage in this process."""
    match stage:
        case "vae":
            train_vae.run(work, budget)
        case "text":
            train_text.run(work, budget)
        case "cache":
            cache.run(work, clips)
        case "transformer":
            train_transformer.run(work, budget)
        case "decoder":
            train_decoder.run(work, budget)
        case _:
            raise ValueError(f"no stage {stage!r}; use one of {', '.join(stages())}")


def export(work: Path, output: Path) -> None:
    """Write the checkpoint of what `work` holds."""
    vae = train_decoder.finished_vae(work)
    found = cache.statistics(cache.load_shards(work))
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in found.mean.tolist()],
        latents_std=[round(v, 5) for v in found.deviation.tolist()],
    )
    for weight in vae.parameters():
        weight.data = weight.data.contiguous()
    transformer = train_transformer.trained_transformer(work)
    save_checkpoint(output, build_tokenizer(), train_text.trained_encoder(work), vae, transformer)


def stages() -> list[str]:
    """The stages' names, in order."""
    return ["vae", "text", "cache", "transformer", "decoder", "export"]


def main(argv: list[str] | None = None) -> None:
    """Read the command line and run the stages it names."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tiny.train",
        description="Make the embedded model's weights, stage by stage.",
        epilog=GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=["begin", *stages(), "all"], help="what to run")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--steps", type=int, help="steps to reach in all (the stage's own number)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--rate", type=float, default=1.0, help="times the stage's own rates (1)")
    parser.add_argument("--clips", type=int, default=CLIPS, help=f"clips to cache ({CLIPS})")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded processes (2)")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="checkpoint to write")
    given = parser.parse_args(argv)
    for stage in stages() if given.stage == "all" else [given.stage]:
        if stage == "export":
            export(given.work, given.output)
            continue
        if stage == "begin":
            begin_with(CHECKPOINT, given.work, STEPS["text"])
            continue
        steps = given.steps or STEPS.get(stage, 0)
        budget = Budget(steps, stop_after_minutes=given.minutes, rate=given.rate)
        job = partial(work_on, stage, given.work, budget, given.clips)
        # The text encoder is too small to share.
        run_together(1 if stage == "text" else given.processes, job)


if __name__ == "__main__":
    main()
