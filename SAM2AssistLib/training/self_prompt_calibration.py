"""What a trained head is good at, and how sure it has to be: measured on phantoms that it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from SAM2AssistLib.engine.loading import Engine
from SAM2AssistLib.prompting.class_maps import ClassMaps
from SAM2AssistLib.prompting.templates import TemplateOptions, find_class
from SAM2AssistLib.prompting.voxel_head import VoxelPromptHead
from SAM2AssistLib.training.self_prompt_scans import REMOVABLE, phantom_scan, training_scan

FIRST_SEED = 4_000_000
"""Of the phantoms of the calibration: neither trained on nor among those of tests and measurements."""
LEAST_DICE = 0.8
"""Classes that the head itself finds worse than this are not announced."""
PRESENT_ML, ABSENT_ML = 3.0, 0.05
"""More of a class is present, less is absent; a sliver in between at the end of a scan may be called either."""


@dataclass(frozen=True)
class Calibration:
    """What was measured of one class.

    Attributes
    ----------
    dice : mean of the maps, over the phantoms that show it, on the grid of the maps; nan if none did.
    presence : least confidence that counts as present.
    found, rejected : share of present ones found, and of absent ones declared absent, at that confidence.
    """

    dice: float
    presence: float
    found: float
    rejected: float


def calibrate(engine: Engine, head: VoxelPromptHead, classes: Sequence[str], count: int) -> dict[str, Calibration]:
    """Measure a head on phantoms, every second one without one of its organs.

    Parameters
    ----------
    count : of phantoms.
    """
    names = tuple(classes)
    dices: dict[str, list[float]] = {name: [] for name in names}
    there: dict[str, list[float]] = {name: [] for name in names}
    missing: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count):
        without = sorted(REMOVABLE)[(number // 2) % len(REMOVABLE)] if number % 2 else None
        scan = phantom_scan(FIRST_SEED + number, without)
        known = training_scan(engine, scan, names)
        maps = ClassMaps(names, head.probabilities(known.features), known.features.view, known.features.distance_mm)
        voxel_ml = float(np.prod(scan.volume.spacing_ijk)) / 1000
        truth = known.truth.float().argmax(dim=1).numpy()
        for place, name in enumerate(names, 1):
            finding = find_class(maps, name, 1.0, TemplateOptions())
            volume_ml = voxel_ml * float(scan.masks[name].sum()) if name in scan.masks else 0.0
            if volume_ml >= PRESENT_ML:
                there[name].append(finding.presence)
                region, actual = maps.region(name), truth == place
                dices[name].append(2 * (region & actual).sum() / max(1, region.sum() + actual.sum()))
            elif volume_ml <= ABSENT_ML:
                missing[name].append(finding.presence)
    return {name: _calibration(dices[name], there[name], missing[name]) for name in names}


def _calibration(dices: Sequence[float], there: Sequence[float], missing: Sequence[float]) -> Calibration:
    """Choose the confidence that errs least; an invented organ is as bad as a missed one."""
    candidates = np.arange(0.3, 0.91, 0.02)
    present, absent = np.array(there or [1.0]), np.array(missing or [0.0])
    right = np.array([(present >= t).mean() + (absent < t).mean() for t in candidates])
    # In the middle of all that are equally good, so that neither side is at the brink.
    best = float(np.median(candidates[right >= right.max() - 1e-9]))
    return Calibration(
        dice=float(np.mean(dices)) if dices else float("nan"),
        presence=best,
        found=float((present >= best).mean()),
        rejected=float((absent < best).mean()),
    )
