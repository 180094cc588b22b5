"""A miniature data folder and a tiny network to fine-tune; as a script, a run that a test can kill or split.

python finetune_scenes.py DATA OUT [--steps N] [--batch N] [--accumulate N] [--dropout P] [--slow SECONDS]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import SimpleITK as sitk
import torch
from training_scenes import TINY, TINY_SIZE

from SAM2AssistLib.engine.architecture import ARCHITECTURES, build_sam2
from SAM2AssistLib.engine.catalogue import ModelSpec
from SAM2AssistLib.training import adapter_run
from SAM2AssistLib.training.adapter_run import Result, finetune_adapter
from SAM2AssistLib.training.lora import LoraRecipe
from SAM2AssistLib.training.phpg import Prompting
from SAM2AssistLib.training.recipe import FineTuneRecipe

STEPS = 16
SPEC = ModelSpec(
    "tiny", "Tiny", "tiny", TINY_SIZE, 900_000, "tiny.safetensors",
    source="here", licence="none", sha256="a" * 64, dense_prompts=True, carries_logits=True,
)  # fmt: skip


def a_data_folder(root: Path, names: str = "abcd", slices: int = 5) -> Path:
    """Write CTs of two bright blocks, in the plain layout."""
    rng = np.random.default_rng(1)
    for name in names:
        labels = np.zeros((slices, 48, 48), np.uint8)
        shift = int(rng.integers(0, 8))
        labels[: slices - 1, 6 + shift : 24 + shift, 6:26] = 5
        labels[1:, 28:44, 28 - shift // 2 : 44] = 2
        noise = rng.normal(0, 15, labels.shape)
        hu = (noise + np.where(labels == 5, 150, np.where(labels == 2, 70, -60))).astype(np.int16)
        hu[:, :2] = -1000
        for folder, array in (("images", hu), ("labels", labels)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((2.0, 2.0, 4.0))
            sitk.WriteImage(image, str(root / folder / f"{name}.nii.gz"))
    (root / "labels.json").write_text('{"liver": 5, "spleen": 2}')
    return root


def a_recipe(**changes) -> FineTuneRecipe:
    """Give the settings of a run of moments, with clips, pruning and updates everywhere."""
    settings = FineTuneRecipe(
        steps=STEPS,
        batch=4,
        clip_share=0.4,
        clip_slices=3,
        lora=LoraRecipe(rank=2),
        prompting=Prompting(per_region=2, fewest=0, most=1),
    )
    return replace(settings, **changes)


def finetune_tiny(
    data: Path, out: Path, recipe: FineTuneRecipe, dropout: float = 0.1, untrained_base: bool = True, **others
) -> Result:
    """Fine-tune the tiny network, whose weights are random but always the same."""
    torch.manual_seed(0)
    with (
        mock.patch.dict(ARCHITECTURES, {"tiny": replace(TINY, memory_dropout=dropout)}),
        # There are no weights of it to be loaded.
        mock.patch.object(adapter_run, "load_base", lambda spec: build_sam2(spec.architecture, spec.image_size)),
    ):
        return finetune_adapter(data, out, SPEC, recipe, torch.device("cpu"), untrained_base=untrained_base, **others)


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--checkpoint-every", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = a_recipe(steps=arguments.steps, batch=arguments.batch, accumulate=arguments.accumulate)

    def report(progress: adapter_run.Progress) -> None:
        print(progress.step, flush=True)
        time.sleep(arguments.slow)

    finetune_tiny(
        arguments.data,
        arguments.out,
        recipe,
        arguments.dropout,
        announce=lambda plan: print(f"a step takes {plan.peak_bytes} bytes", file=sys.stderr, flush=True),
        report=report,
        checkpoint_every=arguments.checkpoint_every,
    )


if __name__ == "__main__":
    main()
