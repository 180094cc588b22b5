"""Published protocols for organs in CT, with the quirks of the programs that made the published tables.

A number can only be put beside a published one if it was computed alike, so each protocol scores as its original does,
strange cases included. Beside each published score stands an honest one (`honest_score`): distances in millimetres with
the real spacing, a missed organ at the worst distance there is, and nothing gained by an organ that is not there.

Sources: TransUNet's ``utils.calculate_metric_percase`` (Synapse, by way of medpy), MONAI's Swin UNETR (BTCV), and
``FLARE22_DSC_NSD_Eval.py`` of JunMa11/FLARE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.evaluation.metrics import hausdorff95, largest_distance_mm, surface_dice
from SAM2AssistLib.overlap import dice

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

HONEST_TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class Published:
    """A score as the protocol's original program gives it.

    Attributes
    ----------
    dsc : its Dice.
    second : its second score, None if it has none; `Protocol.second` says which.
    """

    dsc: float
    second: float | None = None


@dataclass(frozen=True)
class Honest:
    """A score that no quirk flatters.

    Attributes
    ----------
    dsc : volumetric Dice; None where the organ is neither there nor found, which says nothing.
    nsd : surface Dice at 2 mm; None likewise.
    hd95_mm : 95th percentile of surface distances in mm; the volume's diagonal if the organ was missed or invented;
        None likewise.
    """

    dsc: float | None
    nsd: float | None
    hd95_mm: float | None


@dataclass(frozen=True)
class Protocol:
    """A published protocol.

    Attributes
    ----------
    name : on the command line.
    title : in reports.
    organs : in the order of its label values, by the names of TotalSegmentator.
    score : from mask, reference, spacing (k, j, i) in mm and organ.
    second : what its second score is, "" if it has none.
    quirks : what is strange about it, for the report.
    """

    name: str
    title: str
    organs: tuple[str, ...]
    score: Callable[[Mask, Mask, Spacing, str], Published]
    second: str
    quirks: str


def honest_score(mask: Mask, reference: Mask, spacing_kji: Spacing) -> Honest:
    """Score an organ without quirks; arrays (k, j, i), spacing in mm."""
    if not mask.any() and not reference.any():
        return Honest(None, None, None)
    if not mask.any() or not reference.any():
        return Honest(0.0, 0.0, largest_distance_mm(mask.shape, spacing_kji))
    return Honest(
        dice(mask, reference),
        surface_dice(mask, reference, spacing_kji, HONEST_TOLERANCE_MM),
        hausdorff95(mask, reference, spacing_kji),
    )


def synapse_score(mask: Mask, reference: Mask, spacing_kji: Spacing, organ: str) -> Published:
    """Score as TransUNet: distances in voxels; a missed organ has a distance of 0, an invented one a Dice of 1."""
    if mask.any() and reference.any():
        return Published(dice(mask, reference), hausdorff95(mask, reference))
    return Published(1.0 if mask.any() else 0.0, 0.0)


def btcv_score(mask: Mask, reference: Mask, spacing_kji: Spacing, organ: str) -> Published:
    """Score as MONAI's Swin UNETR: Dice only, 0 where there is no reference."""
    return Published(dice(mask, reference) if reference.any() else 0.0)


FLARE_TOLERANCES_MM = {
    "liver": 5.0,
    "kidney_right": 3.0,
    "spleen": 3.0,
    "pancreas": 5.0,
    "aorta": 2.0,
    "inferior_vena_cava": 2.0,
    "adrenal_gland_right": 2.0,
    "adrenal_gland_left": 2.0,
    "gallbladder": 2.0,
    "esophagus": 3.0,
    "stomach": 5.0,
    "duodenum": 7.0,
    "kidney_left": 3.0,
}
FLARE_IN_LABELLED_SLICES = ("aorta", "inferior_vena_cava", "esophagus")
FLARE_LEAST_DSC = 0.2


def flare_score(mask: Mask, reference: Mask, spacing_kji: Spacing, organ: str) -> Published:
    """Score as the FLARE 2022 challenge.

    Tubes are scored on the slices of the reference only, the uppermost of which is lost; the tolerance of the surface
    Dice depends on the organ; it is 0 where the Dice is below 0.2; an organ that is neither there nor found counts 1.
    """
    if not mask.any() and not reference.any():
        return Published(1.0, 1.0)
    if not mask.any() or not reference.any():
        return Published(0.0, 0.0)
    slices = np.flatnonzero(reference.any(axis=(1, 2)))
    # A tube on one slice would leave nothing, and the original's Dice would be 0 / 0.
    if organ in FLARE_IN_LABELLED_SLICES and len(slices) > 1:
        mask, reference = mask[slices[0] : slices[-1]], reference[slices[0] : slices[-1]]
    overlap = dice(mask, reference)
    if overlap < FLARE_LEAST_DSC:
        return Published(overlap, 0.0)
    return Published(overlap, surface_dice(mask, reference, spacing_kji, FLARE_TOLERANCES_MM[organ]))


SYNAPSE8 = Protocol(
    "synapse8",
    "Synapse, 8 organs (TransUNet's protocol)",
    ("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "aorta", "pancreas"),
    synapse_score,
    "HD95 (voxels)",
    "HD95 is in voxels without regard to spacing, though most tables print mm; a missed organ has HD95 0, which "
    "flatters who misses; an organ found where there is none counts as a Dice of 1. Means over cases by organ, then "
    "over organs; the published test set is 0001 0002 0003 0004 0008 0022 0025 0029 0032 0035 0036 0038.",
)
BTCV13 = Protocol(
    "btcv13",
    "BTCV, 13 organs (MONAI's Swin UNETR protocol)",
    (
        "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "aorta",
        "inferior_vena_cava", "portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
    ),
    btcv_score,
    "",
    "Dice only, 0 where the reference is empty whatever was found; means over the organs of a case, then over cases. "
    "Published with 24 training and 6 validation cases; the figures of the test server are another matter.",
)  # fmt: skip
FLARE22 = Protocol(
    "flare22",
    "FLARE 2022, 13 organs",
    tuple(FLARE_TOLERANCES_MM),
    flare_score,
    "NSD (organ's tolerance)",
    "Aorta, inferior vena cava and oesophagus are scored on the slices of the reference only, without the uppermost "
    "one; the tolerance of NSD is the organ's (2 to 7 mm); NSD is 0 where Dice is below 0.2; an organ that is neither "
    "there nor found counts as 1.",
)
PUBLISHED = {protocol.name: protocol for protocol in (SYNAPSE8, BTCV13, FLARE22)}


def published_means(
    protocol: Protocol, scores: Sequence[tuple[str, str, Published]]
) -> tuple[dict[str, Published], Published]:
    """Average as the protocol does.

    Parameters
    ----------
    scores : (case, organ, score); every case has every organ.

    Returns
    -------
    The means of the organs over cases, and the mean of all. As every case has every organ, it does not matter whether
    organs or cases are averaged first.
    """
    by_organ = {
        organ: _mean([score for _, other, score in scores if other == organ])
        for organ in protocol.organs
        if any(other == organ for _, other, _ in scores)
    }
    return by_organ, _mean(list(by_organ.values()))


def _mean(scores: Sequence[Published]) -> Published:
    seconds = [score.second for score in scores if score.second is not None]
    return Published(
        round(float(np.mean([score.dsc for score in scores])), 5),
        round(float(np.mean(seconds)), 5) if seconds else None,
    )
