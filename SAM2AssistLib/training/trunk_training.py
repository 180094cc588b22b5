"""Train an adapter's sense of the trunk, so that no organ is looked for in an arm or a leg.

    python -m SAM2AssistLib.training.trunk_training --adapter DIR [--trunk IMAGE] [--limb IMAGE]

A logistic regression on what slices look like as a whole: of phantoms and CTs of the trunk, also cropped, and of CTs of
limbs and thighs made of cylinders. Every patient is judged once by what was learned without him, for the card.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SAM2AssistLib.engine.loading import Engine, load_engine
from SAM2AssistLib.prompting.orientation import Orientation
from SAM2AssistLib.prompting.parts import add_part
from SAM2AssistLib.prompting.self_prompt import load_self_prompter
from SAM2AssistLib.prompting.trunk import TRUNK_NAME, TrunkSense, whole_looks
from SAM2AssistLib.prompting.voxel_features import VoxelFeatures
from SAM2AssistLib.training.self_prompt_scans import LabelledScan, phantom_scan, training_scan
from SAM2AssistLib.volume import CTVolume

FIRST_SEED = 5_700_000
PHANTOMS, THIGHS = 40, 24
VIEWS = 4
"""Of each CT; every second one of a trunk is cropped, so that a cropped body is not taken for a limb."""
MOST_SLICES = 70
RIDGE = 1e-2


@dataclass(frozen=True, eq=False)
class Seen:
    """A volume as the network sees it.

    Attributes
    ----------
    name : of the volume; views of the same patient share it.
    is_trunk : or a limb.
    is_real : or made.
    features : of all slices.
    """

    name: str
    is_trunk: bool
    is_real: bool
    features: VoxelFeatures


def thighs(seed: int) -> CTVolume:
    """Make one leg or two: skin, fat, muscle, bone and marrow, along z with a random slant."""
    rng = np.random.default_rng([seed, 11])
    side, pixel_mm, slices = int(rng.integers(96, 160)), float(rng.uniform(2.0, 3.5)), int(rng.integers(16, 40))
    rows, columns = np.ogrid[:side, :side]
    array = np.full((slices, side, side), -1000.0)
    centres = (0.3, 0.7) if rng.random() < 0.6 else (float(rng.uniform(0.4, 0.6)),)
    radius = float(rng.uniform(40, 95 if len(centres) > 1 else 120))
    fat, bone = float(rng.uniform(4, 30)), float(rng.uniform(9, 22))
    muscle, slant = float(rng.uniform(35, 75)), float(rng.uniform(-0.3, 0.3))
    for k in range(slices):
        size = 1 + slant * (k / slices - 0.5)
        for centre in centres:
            down, across = (rows - side / 2) * pixel_mm, (columns - centre * side) * pixel_mm
            depth = np.hypot(down, across * float(rng.uniform(0.98, 1.02))) / size
            off = np.hypot(down + 0.2 * radius, across - 0.1 * radius)
            array[k][depth < radius] = -100
            array[k][depth < radius - fat] = muscle
            array[k][off < bone] = 900
            array[k][off < 0.5 * bone] = 20
    array += rng.normal(0, float(rng.uniform(5, 25)), array.shape)
    return CTVolume.from_array(array.astype(np.int16), (pixel_mm, pixel_mm, 5.0), np.diag([pixel_mm, pixel_mm, 5.0, 1]))


def cropped(volume: CTVolume, rng: np.random.Generator) -> CTVolume:
    """Cut a random window of half to nine tenths of each side out of all slices."""
    parts = []
    for count in volume.shape_kji[1:]:
        kept = int(count * rng.uniform(0.5, 0.9))
        first = int(rng.integers(0, count - kept + 1))
        parts.append(slice(first, first + kept))
    return replace(volume, array=np.ascontiguousarray(volume.array[:, parts[0], parts[1]]))


def read_volume(path: Path) -> CTVolume:
    """Read a CT in the common orientation, thinned along z if it is long."""
    volume = CTVolume.read(path)
    volume = Orientation.of(volume).turn(volume)
    step = -(-volume.shape_kji[0] // MOST_SLICES)
    return CTVolume(np.ascontiguousarray(volume.array[::step]), volume.ijk_to_lps @ np.diag([1.0, 1.0, step, 1.0]))


def look_at(engine: Engine, trunks: Sequence[Path], limbs: Sequence[Path]) -> list[Seen]:
    """Look at phantoms, at thighs and at CTs, through views that are shaken a little."""
    rng = np.random.default_rng(1)

    def seen(name: str, volume: CTVolume, is_trunk: bool, is_real: bool) -> Seen:
        scan = training_scan(engine, LabelledScan(name, volume, {}), (), rng)
        return Seen(name, is_trunk, is_real, scan.features)

    found = []
    for number in range(PHANTOMS):
        volume = phantom_scan(FIRST_SEED + number).volume
        found.append(seen(f"phantom {number}", cropped(volume, rng) if number % 4 == 0 else volume, True, False))
    found += [seen(f"thighs {number}", thighs(number), False, False) for number in range(THIGHS)]
    for path in (*trunks, *limbs):
        volume, is_trunk = read_volume(path), path in trunks
        for view in range(VIEWS):
            part = cropped(volume, rng) if is_trunk and view % 2 else volume
            found.append(seen(path.parent.name, part, is_trunk, True))
        print(path.parent.name, flush=True)
    return found


def fit(volumes: Sequence[Seen]) -> TrunkSense:
    """Fit the regression; trunk and limb weigh the same, and so does each volume of them."""
    looks = [whole_looks(v.features) for v in volumes]
    every = torch.cat(looks)
    middle, spread = every.mean(dim=0), every.std(dim=0)
    truth = torch.cat([torch.full((len(x),), float(v.is_trunk)) for x, v in zip(looks, volumes, strict=True)])
    share = {kind: sum(v.is_trunk == kind for v in volumes) for kind in (True, False)}
    weight = torch.cat(
        [torch.full((len(x),), 1 / len(x) / share[v.is_trunk]) for x, v in zip(looks, volumes, strict=True)]
    )
    slope, offset = torch.zeros(every.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, offset], max_iter=100)
    scaled = (every - middle) / spread

    def closure() -> Tensor:
        optimizer.zero_grad()
        entropy = F.binary_cross_entropy_with_logits(scaled @ slope + offset, truth, weight=weight, reduction="sum")
        loss = entropy + RIDGE * (slope @ slope)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    sense = TrunkSense(every.shape[1] // 2)
    with torch.no_grad():
        sense.reading.weight.copy_((slope / spread)[None])
        sense.reading.bias.copy_(offset - (slope / spread) @ middle)
    return sense


def judged_apart(volumes: Sequence[Seen]) -> dict[str, float]:
    """Tell for each patient which share of his slices is taken for the trunk by what was learned without him."""
    shares = {}
    for name in dict.fromkeys(v.name for v in volumes if v.is_real):
        sense = fit([v for v in volumes if v.name != name])
        shares[name] = round(float(np.mean([sense.slices(v.features).mean() for v in volumes if v.name == name])), 3)
    return shares


def main() -> None:
    """Parse the command line, look, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of an adapter with a self-prompt head")
    parser.add_argument("--trunk", type=Path, action="append", default=[], help="CT of a trunk; repeatable")
    parser.add_argument("--limb", type=Path, action="append", default=[], help="CT of an arm or a leg; repeatable")
    parser.add_argument("--model", default="mini")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    prompter = load_self_prompter(load_engine(given.model, "cpu"), given.adapter)
    volumes = look_at(prompter.engine, given.trunk, given.limb)
    shares = judged_apart(volumes)
    measured = {
        "data": [f"{PHANTOMS} procedural phantoms", f"{THIGHS} thighs made of cylinders", *shares],
        "share_of_slices_taken_for_the_trunk_by_what_was_learned_without_the_patient": shares,
    }
    add_part(given.adapter, TRUNK_NAME, fit(volumes), measured)
    print(json.dumps(measured, indent=1), flush=True)


if __name__ == "__main__":
    main()
