"""What each part of the training brings, measured: run by commands, reported in Resources/Docs/ablation.md.

    python -m SAM2AssistLib.training.ablation regions
    python -m SAM2AssistLib.training.ablation prompting [--data DIR] [--from-scratch] --steps 100
    python -m SAM2AssistLib.training.ablation pruning [--data DIR] --steps 200

``regions`` times one training step on K regions of a slice: all in one decoder call, and one at a time. ``prompting``
and ``pruning`` fine-tune the same base with the same seed on the same data and differ in one setting; they are compared
on phantoms, and on the validation and test patients of the data, that no variant was trained on, as the spread over
behaviours too. Without ``--data``, phantoms alone are trained on. The embedded base has met all behaviours already,
which hides what they bring; ``--from-scratch`` starts each variant from the same random weights and trains all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.device import choose_device
from SAM2AssistLib.prompting.error_head import ErrorHead, channels_of
from SAM2AssistLib.training.adapter_run import appearance_for, build_base
from SAM2AssistLib.training.behaviours import BEHAVIOURS
from SAM2AssistLib.training.cbdp import Pruning
from SAM2AssistLib.training.datasets.case import Case
from SAM2AssistLib.training.datasets.layouts import find_data
from SAM2AssistLib.training.datasets.split import split_of
from SAM2AssistLib.training.finetune import FineTuner, make_accelerator
from SAM2AssistLib.training.lora import WHOLE, LoraRecipe
from SAM2AssistLib.training.phpg import Prompting, Regions, phpg_step
from SAM2AssistLib.training.recipe import FineTuneRecipe
from SAM2AssistLib.training.slices import CaseStore, SampleKey, SliceSamples
from SAM2AssistLib.training.synthetic import phantom_ct, with_synthetic_names
from SAM2AssistLib.training.unit import collate

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

SINGLE_HEURISTIC = Prompting(
    {"centre click": 1.0}, per_region=1, fewest=0, most=0, competition=0.0, consistency=0.0, error=0.0
)
"""What PHPG is compared with: every region prompted by one click in its middle, no corrections."""
FROM_SCRATCH_RATE = 5e-4
"""The learning rate of the first stage of ``mini``."""
HELD_OUT_SEED = 900_000
"""Phantoms from here on are never trained on."""
CORRECTIONS = (0, 3)
"""After how many corrections the behaviours are compared: at once, and as a user leaves it."""


@dataclass(frozen=True)
class Spread:
    """How a network answers different behaviours.

    Attributes
    ----------
    corrections : clicks on its errors that every behaviour was followed by.
    mean : Dice over regions and behaviours.
    by_behaviour : mean Dice over regions.
    deviation : standard deviation over behaviours, mean over regions.
    worst : of the behaviours, mean over regions.
    regions : number of regions, each as often as it was prompted.
    """

    corrections: int
    mean: float
    by_behaviour: dict[str, float]
    deviation: float
    worst: float
    regions: int


@dataclass(frozen=True)
class Variant:
    """One setting of an ablation."""

    name: str
    prompting: Prompting
    pruning: Pruning


def time_regions(regions: int, repeats: int) -> dict[str, float]:
    """Time a training step (forward and backward) on the regions of one slice, both ways in turn."""
    spec = find_model("mini")
    torch.manual_seed(0)
    model = build_sam2(spec.architecture, spec.image_size).train()
    head = ErrorHead(channels_of(model))
    prompting = replace(Prompting(), per_region=1)
    size = spec.image_size
    masks = torch.zeros(regions, size, size, dtype=torch.bool)
    for n in range(regions):
        row, column = divmod(n, 4)
        masks[n, 12 + 60 * row : 60 + 60 * row, 12 + 60 * column : 60 + 60 * column] = True
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))

    def step(chosen: Sequence[int]) -> float:
        keys = [(1, n) for n in chosen]
        owner = torch.zeros(len(chosen), dtype=torch.long)
        batch = Regions(image, masks[list(chosen)], owner, torch.ones(1), keys)
        began = time.perf_counter()
        phpg_step(model, head, batch, prompting, 0, drawn_prompts=True).loss.backward()
        model.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    step(range(regions))
    together, alone = [], []
    for _ in range(repeats):  # in turn, because other work on the machine comes and goes
        together.append(step(range(regions)))
        alone.append(sum(step([n]) for n in range(regions)))
    ratios = [a / t for a, t in zip(alone, together, strict=True)]
    return {
        "regions": regions,
        "multi_region_per_second": round(regions / statistics.median(together), 2),
        "one_at_a_time_per_second": round(regions / statistics.median(alone), 2),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_least": round(min(ratios), 2),
        "ratio_most": round(max(ratios), 2),
    }


def measure_spread(
    model: SAM2Base, samples: SliceSamples, most: int, drawn_prompts: bool, corrections: int = 0, draws: int = 1
) -> Spread:
    """Prompt regions of held-out slices in every way, correct each as people do, and compare; ``draws`` times anew."""
    model.eval()
    head = ErrorHead(channels_of(model)).to(model.device)
    count = len(samples.index)
    chosen = sorted({int(n) for n in np.linspace(0, count - 1, min(count, most)).round()})
    table: list[list[float]] = []
    with torch.inference_mode():
        for n, draw in product(chosen, range(1, 1 + draws)):
            batch = collate([samples[SampleKey(n, draw, 0)]]).to(model.device)
            regions = Regions(batch.images[:, 0], batch.masks[0], batch.owner, batch.weights, batch.keys)
            ways = [Prompting({name: 1.0}, per_region=1, previous_share=1.0) for name in BEHAVIOURS]
            rows = [_dice_rows(model, head, regions, way, drawn_prompts, corrections) for way in ways]
            table += [list(values) for values in zip(*rows, strict=True)]
    values = np.array(table)
    return Spread(
        corrections,
        round(float(values.mean()), 4),
        {name: round(float(values[:, n].mean()), 4) for n, name in enumerate(BEHAVIOURS)},
        round(float(values.std(1).mean()), 4),
        round(float(values.min(1).mean()), 4),
        len(values),
    )


def _dice_rows(
    model: SAM2Base, head: ErrorHead, regions: Regions, prompting: Prompting, drawn_prompts: bool, corrections: int
) -> list[float]:
    logits = phpg_step(model, head, regions, prompting, corrections, drawn_prompts=drawn_prompts).masks
    size = regions.masks.shape[-2:]
    guess = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[:, 0] > 0
    shared = (guess & regions.masks).flatten(1).sum(1)
    return (2 * shared / (guess.flatten(1).sum(1) + regions.masks.flatten(1).sum(1))).tolist()


def compare(
    variants: Sequence[Variant],
    data: Path | None,
    steps: int,
    batch: int,
    most: int,
    *,
    draws: int = 1,
    unseen: Sequence[int] = (HELD_OUT_SEED,),
    phantoms: int | None = None,
    from_scratch: bool = False,
) -> dict[str, object]:
    """Train once per variant, and measure the base and each of them on what none was trained on.

    Parameters
    ----------
    data : a data folder; phantoms alone if None.
    most : held-out slices of each kind to measure on; draws : how often each, with prompts of its own every time.
    unseen : seeds, each of the first of four held-out phantoms.
    phantoms : to train on; 12, or 4 beside real data, if None.
    from_scratch : train everything from random weights, instead of an adapter for the embedded ones.
    """
    spec = find_model("mini")
    device = choose_device("auto")
    lora = LoraRecipe(targets=(), whole=tuple(WHOLE)) if from_scratch else LoraRecipe()
    made_up = phantoms or (4 if data else 12)
    recipe = FineTuneRecipe(
        steps=steps,
        batch=batch,
        clip_share=0.0,
        warm_up=10,
        phantoms=made_up,
        lora=lora,
        whole_rate=FROM_SCRATCH_RATE,
    )

    def base() -> SAM2Base:
        torch.manual_seed(recipe.seed)
        return build_base(spec, untrained=from_scratch)

    train, held, names = _cases(data)
    every = with_synthetic_names(names, 1, 0)
    made = [phantom_ct(seed, every) for seed in range(recipe.phantoms)]
    others = [phantom_ct(first + n, every) for first in unseen for n in range(4)]
    store = CaseStore(train, every, made)
    tests = {"phantoms": CaseStore([], every, others)} | ({"patients": CaseStore(held, names)} if held else {})
    plain = appearance_for(spec, recipe, varied=False)
    held_out = {name: SliceSamples(test, test.index(), plain, 8) for name, test in tests.items()}

    def measured(model: SAM2Base) -> dict[str, object]:
        return {
            name: [asdict(measure_spread(model, s, most, spec.dense_prompts, rounds, draws)) for rounds in CORRECTIONS]
            for name, s in held_out.items()
        }

    report: dict[str, object] = {"base": measured(base().to(device))}
    for variant in variants:
        own = replace(recipe, prompting=variant.prompting, pruning=variant.pruning)
        samples = SliceSamples(store, store.index(), appearance_for(spec, own), own.most_regions)
        with tempfile.TemporaryDirectory() as folder:
            tuner = FineTuner(
                base(), spec, own, store, samples, Path(folder), accelerator=make_accelerator(own, device)
            )
            tuner.run()
            report[variant.name] = {
                "steps": tuner.position.step,
                "slices_encoded": tuner.position.encoded,
                "rows_decoded": tuner.position.decoded,
                "seconds": round(tuner.position.seconds, 1),
                **measured(tuner.model),
            }
        print(variant.name, json.dumps(report[variant.name]), flush=True)
    return report


def _cases(data: Path | None) -> tuple[list[Case], list[Case], dict[str, int]]:
    if data is None:
        return [], [], {}
    found = find_data(data)
    split = split_of(found)
    held = [found.case(name) for name in (*split.val, *split.test)]
    return [found.case(name) for name in split.train], held, found.names


def variants_of(what: str) -> list[Variant]:
    """Return the settings that an ablation compares."""
    none = Pruning("none")
    if what == "prompting":
        return [Variant("PHPG", Prompting(), none), Variant("centre click", SINGLE_HEURISTIC, none)]
    return [Variant(method, Prompting(), Pruning(method)) for method in ("none", "cbdp", "random")]


def main() -> None:
    """Run one ablation and print what it gave as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("regions", "prompting", "pruning"))
    parser.add_argument("--data", type=Path, help="a data folder; phantoms alone if not given")
    parser.add_argument("--from-scratch", action="store_true", help="train everything from random weights")
    parser.add_argument("--phantoms", type=int, help="to train on; default 12, or 4 beside real data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--most", type=int, default=24, help="held-out slices of each kind to measure on")
    parser.add_argument("--draws", type=int, default=1, help="how often each is prompted and corrected anew")
    parser.add_argument(
        "--unseen",
        type=int,
        nargs="+",
        default=[HELD_OUT_SEED],
        help=f"seeds, {HELD_OUT_SEED} or more: each of the first of four held-out phantoms",
    )
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if min(arguments.unseen) < HELD_OUT_SEED:
        parser.error(f"--unseen takes seeds of {HELD_OUT_SEED} or more; others may have been trained on.")
    torch.set_flush_denormal(True)
    if arguments.what == "regions":
        print(json.dumps(time_regions(arguments.regions, arguments.repeats), indent=1))
        return
    variants = variants_of(arguments.what)
    report = compare(
        variants,
        arguments.data,
        arguments.steps,
        arguments.batch,
        arguments.most,
        draws=arguments.draws,
        unseen=arguments.unseen,
        phantoms=arguments.phantoms,
        from_scratch=arguments.from_scratch,
    )
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
