"""Small labelled CTs in the layouts that ``sam2assist evaluate`` reads, and trials with made-up scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from command_line import GRID, balls
from ct_files import write_image

from SAM2AssistLib.evaluation.interactive import Trial

NAMES = {"ball": 2, "little ball": 5}


def ball_labels() -> np.ndarray:
    """Return the label map (k, j, i) of the two balls in `command_line.balls`."""
    labels = np.zeros((8, 64, 64), np.uint8)
    k, j, i = np.indices(labels.shape)
    for value, center, radius in ((2, (4, 24, 30), 10), (5, (4, 44, 48), 7)):
        labels[(4.0 * (k - center[0])) ** 2 + (j - center[1]) ** 2 + (i - center[2]) ** 2 < radius**2] = value
    return labels


def write_data(folder: Path, cases: tuple[str, ...] = ("one", "two")) -> Path:
    """Write a plain data folder with the same two balls in each case."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in cases:
        write_image(folder / "images" / f"{name}.nii.gz", balls(), GRID)
        write_image(folder / "labels" / f"{name}.nii.gz", ball_labels(), GRID)
    (folder / "labels.json").write_text(json.dumps(NAMES))
    return folder


def a_trial(dsc: tuple[float, ...], **others) -> Trial:
    """Make a trial with these scores; NSD is a tenth lower."""
    given = {
        "case": "one",
        "structure": "ball",
        "method": "ours",
        "behaviour": "box",
        "seed": 0,
        "voxels": 1000,
        "slice_dsc": dsc[0],
        "dsc": dsc,
        "nsd": tuple(round(score - 0.1, 5) for score in dsc),
        "seconds": (1.0,) * len(dsc),
        "first_clicks": (),
        "clicks": (),
        "first_slice": 4,
        "first_box": (),
    }
    return Trial(**{**given, **others})
