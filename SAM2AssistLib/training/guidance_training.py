"""Train the guidance by pseudo-masks (PMA) of an adapter: the few numbers that shape its gate.

    python -m SAM2AssistLib.training.guidance_training --adapter DIR [--data CASE] [--seeded CASE] [--minutes 4]

The network is frozen. Cases that support one another, and phantoms in pairs, are looked at as Auto-Segment does; what
the mask decoder is given for a second look is kept, and the gate is trained on it. Every fifth pair is kept apart, and
the card tells how the second look does there with the gate and without it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.engine.loading import default_window, load_engine
from SAM2AssistLib.engine.network import Network, Row
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.prompting.body import body_view
from SAM2AssistLib.prompting.guidance import GUIDANCE_NAME, MaskGuidance, guided_attentions
from SAM2AssistLib.prompting.parts import add_part
from SAM2AssistLib.prompting.pseudo_masks import SupportOptions, SupportPrompter, pseudo_logits
from SAM2AssistLib.prompting.self_prompt import SelfPrompter, load_self_prompter
from SAM2AssistLib.prompting.support import SupportCase, prepare_support
from SAM2AssistLib.prompting.voxel_features import VoxelFeatures, read_features
from SAM2AssistLib.training.self_prompt_scans import LabelledScan, file_scan, phantom_scan, seeded_scan, truth_of

FIRST_SEED = 5_500_000
"""Of the phantoms, which no test and no measurement uses."""
MOST_CLASSES = 10
"""Of a pair that are looked at, so that a case with many structures does not outweigh the others."""
MOST_SUPPORTS = 2
EVERY_SLICE = 3
APART = 5
"""Every so many pairs one is not trained on."""
LEAST_CELLS = 4.0
"""Of a class on a slice, for it to count as being there."""


@dataclass(frozen=True, eq=False)
class Look:
    """What the mask decoder is given for the second look at a slice, B classes at once.

    Attributes
    ----------
    given : arguments of the mask decoder.
    pseudo : (B, 1, S/4, S/4) logits of the first look.
    truth : (B, 1, S/4, S/4) shares of the cells.
    """

    given: dict[str, Any]
    pseudo: Tensor
    truth: Tensor


def looks_at(prompter: SelfPrompter, query: LabelledScan, support: LabelledScan) -> Iterator[Look]:
    """Look at every few slices of a scan as its only support case has them looked at."""
    engine, window = prompter.engine, default_window(query.volume)
    names = [n for n, m in support.masks.items() if m.any() and (query.complete or n in query.masks)][:MOST_CLASSES]
    if not names:
        return
    case = SupportCase(support.name, support.volume, {n: support.masks[n] for n in names})
    prepared = prepare_support(engine, case, window)
    plane = Plane(engine.model, query.volume, 0, window, engine.channels, engine.options)
    view = body_view(query.volume)
    *_, features = read_features(plane, view)
    assert isinstance(features, VoxelFeatures)
    source = SupportPrompter([prepared], plane, features, SupportOptions(guided=False), prompter)
    truth, size = truth_of(query, source.classes, view), engine.model.image_size // 4
    for k in range(0, features.slices, EVERY_SLICE):
        found = source.candidates(k)
        if found.rows:
            states = plane.network.track(found.rows)
            given = _second_look(plane.network, found.rows)
            wanted = truth[k, [1 + n for n in found.chosen]][:, None].float()
            yield Look(given, pseudo_logits(states).half().clone(), F.adaptive_avg_pool2d(wanted, size).half())


def _second_look(network: Network, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the mask decoder is given when rows are looked at again."""
    kept: dict[str, Any] = {}
    hook = network.model.sam_mask_decoder.register_forward_pre_hook(
        lambda _, __, given: kept.update(given), with_kwargs=True
    )
    try:
        network.look_again(rows)
    finally:
        hook.remove()
    # Tensors of inference mode take no part in training; their copies do.
    return {name: _copied(value) for name, value in kept.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.half().clone()
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float()
    return [_float(item) for item in value] if isinstance(value, list) else value


def decoded(decoder: Any, guidance: MaskGuidance, look: Look) -> tuple[Tensor, Tensor]:
    """Look for the second time; returns logits (B, 1, h, w) and object scores (B, 1)."""
    given = {name: _float(value) for name, value in look.given.items()}
    with guidance.guiding(decoder, look.pseudo.float()):
        masks, _, _, scores = decoder(**given)
    return masks[:, :1], scores


def guidance_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross entropy of all cells, and the Dice of what is there.

    Of the object score nothing is asked: with it in the loss the gate learned to move the score, and masks got worse.
    """
    there = truth.sum(dim=(1, 2, 3)) >= LEAST_CELLS
    share = logits.sigmoid()
    overlap = (2 * (share * truth).sum(dim=(1, 2, 3)) + 1) / ((share + truth).sum(dim=(1, 2, 3)) + 1)
    lost = ((1 - overlap) * there).sum() / there.sum().clamp_min(1)
    return F.binary_cross_entropy_with_logits(logits, truth) + lost


@torch.no_grad()
def mean_dice(decoder: Any, guidance: MaskGuidance, looks: Sequence[Look]) -> float:
    """Mean Dice of the second look over what is there."""
    values: list[float] = []
    for look in looks:
        logits, scores = decoded(decoder, guidance, look)
        mask, truth = (logits > 0) & (scores > 0)[:, :, None, None], look.truth.float() >= 0.5
        for row in range(len(mask)):
            total = float(truth[row].sum())
            if total >= LEAST_CELLS:
                values.append(float(2 * (mask[row] & truth[row]).sum() / (mask[row].sum() + total)))
    return float(np.mean(values)) if values else float("nan")


def train(decoder: Any, looks: Sequence[Look], steps: int, rate: float = 0.02, seed: int = 1) -> MaskGuidance:
    """Train a guidance on looks, the rate falling to zero."""
    rng = np.random.default_rng(seed)
    guidance = MaskGuidance(len(guided_attentions(decoder)))
    optimizer = torch.optim.Adam(guidance.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        look = looks[int(rng.integers(len(looks)))]
        logits, _ = decoded(decoder, guidance, look)
        loss = guidance_loss(logits, look.truth.float())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimizer.step()
        losses.append(float(loss.detach()))
        if len(losses) % 100 == 0:
            print(f"{len(losses)} steps, loss {np.mean(losses[-100:]):.4f}", flush=True)
    return guidance


def pairs_of(real: Sequence[LabelledScan]) -> Iterator[tuple[LabelledScan, LabelledScan]]:
    """Pair scans that show something in common, each as the query of up to two others, and phantoms without end.

    They take turns as long as there are both; the query comes first, then its support.
    """
    patients: list[tuple[LabelledScan, LabelledScan]] = []
    for place, query in enumerate(real):
        others = [*real[place + 1 :], *real[:place]]
        patients += [(query, s) for s in others if set(s.masks) & set(query.masks)][:MOST_SUPPORTS]
    for number in itertools.count():
        seed = FIRST_SEED + 2 * number
        yield phantom_scan(seed), phantom_scan(seed + 1)
        if number < len(patients):
            yield patients[number]


def collect(
    prompter: SelfPrompter, real: Sequence[LabelledScan], seconds: float
) -> tuple[list[Look], list[Look], list[str]]:
    """Look at pairs for as long as there is time; returns looks to train on, looks kept apart, and the scans."""
    learned: list[Look] = []
    apart: list[Look] = []
    names: list[str] = []
    started = time.process_time()
    for number, (query, support) in enumerate(pairs_of(real)):
        if time.process_time() - started > seconds:
            break
        found = list(looks_at(prompter, query, support))
        (apart if number % APART == 0 else learned).extend(found)
        names.append(f"{query.name} by {support.name}")
        print(f"{names[-1]}: {len(found)} looks, {time.process_time() - started:.0f} s", flush=True)
    return learned, apart, names


def main() -> None:
    """Parse the command line, collect, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of an adapter with a self-prompt head")
    parser.add_argument("--data", type=Path, action="append", default=[], help="folder of a labelled case; repeatable")
    parser.add_argument("--seeded", type=Path, action="append", default=[], help="case of seeds.json; repeatable")
    parser.add_argument("--grown", type=Path, help="folder that keeps the grown labels of seeded cases")
    parser.add_argument("--minutes", type=float, default=4.0, help="of computing time for looking at pairs")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--model", default="mini")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    prompter = load_self_prompter(load_engine(given.model, "cpu"), given.adapter)
    grown = given.grown or given.adapter.with_name(f"{given.adapter.name}-grown")
    real = [file_scan(folder / "image.nii.gz", folder / "label.nii.gz") for folder in given.data]
    real += [seeded_scan(folder, grown) for folder in given.seeded]
    learned, apart, names = collect(prompter, real, 60 * given.minutes)
    decoder = prompter.engine.model.sam_mask_decoder
    guidance = train(decoder, learned, given.steps)
    none = MaskGuidance(len(guided_attentions(decoder)))
    with torch.no_grad():
        none.bias_strengths.zero_()
        none.light_strength.zero_()
    measured = {
        "trained_on": [n for number, n in enumerate(names) if number % APART],
        "kept_apart": [n for number, n in enumerate(names) if number % APART == 0],
        "looks": [len(learned), len(apart)],
        "dice_kept_apart": round(mean_dice(decoder, guidance, apart), 4),
        "dice_kept_apart_without": round(mean_dice(decoder, none, apart), 4),
    }
    add_part(given.adapter, GUIDANCE_NAME, guidance, measured)
    print(json.dumps(measured, indent=1), {n: p.tolist() for n, p in guidance.named_parameters()}, flush=True)


if __name__ == "__main__":
    main()
