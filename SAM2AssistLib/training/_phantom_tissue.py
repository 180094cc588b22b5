"""HU of the tissues of a phantom in a random contrast phase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# (low, high) HU per phase: native, arterial, portal venous.
_BY_PHASE: dict[str, tuple[tuple[float, float], ...]] = {
    "liver": ((50, 66), (62, 82), (92, 125)),
    "spleen": ((44, 55), (95, 140), (108, 138)),
    "kidney_cortex": ((28, 38), (150, 220), (160, 205)),
    "kidney_medulla": ((28, 38), (65, 105), (145, 185)),
    "pancreas": ((32, 46), (80, 118), (78, 108)),
    "aorta": ((36, 46), (230, 380), (125, 180)),
    "vein": ((36, 46), (60, 115), (110, 165)),
    "portal": ((36, 46), (75, 130), (140, 190)),
    "muscle": ((42, 60), (46, 65), (50, 70)),
    "wall": ((30, 45), (55, 85), (60, 90)),
    "heart": ((36, 46), (150, 260), (115, 165)),
    "tumor": ((15, 50), (25, 120), (20, 95)),
    "liver_lesion": ((15, 48), (25, 125), (20, 75)),
}
_ANY_PHASE: dict[str, tuple[float, float]] = {
    "fat": (-112, -92),
    "bile": (0, 20),
    "urine": (-2, 14),
    "lung": (-890, -780),
    "cortical": (420, 800),
    "trabecular": (90, 220),
    "disc": (70, 110),
    "canal": (14, 38),
    "gas": (-990, -900),
    "stool": (-40, 70),
    "cartilage": (80, 180),
}
PHASES = ("native", "arterial", "portal")


@dataclass(frozen=True)
class Tissues:
    """The HU of every tissue of one phantom and the phase (one of PHASES) they were drawn for."""

    phase: str
    hu: dict[str, float]

    def __getitem__(self, tissue: str) -> float:
        """Return the HU of a tissue."""
        return self.hu[tissue]


def draw_tissues(rng: np.random.Generator) -> Tissues:
    """Draw a contrast phase and a HU for every tissue in it."""
    phase = int(rng.choice(3, p=(0.25, 0.25, 0.5)))
    values = {name: float(rng.uniform(*ranges[phase])) for name, ranges in _BY_PHASE.items()}
    values.update({name: float(rng.uniform(*limits)) for name, limits in _ANY_PHASE.items()})
    # A steatotic liver darkens, in every phase.
    if rng.random() < 0.15:
        values["liver"] -= float(rng.uniform(10, 40))
    # inside the liver, vessels stand out from it whatever its fat
    values["portal"] = max(values["portal"], values["liver"] + (0.0, 15.0, 35.0)[phase])
    values["hepatic_vein"] = values["vein"] if phase != 1 else values["liver"] - 5.0
    if phase == 2:
        values["hepatic_vein"] = max(values["vein"], values["liver"] + 28.0)
    values["marbling"] = float(50.0 * rng.uniform() ** 2)
    positive_oral = rng.random() < 0.2
    values["lumen"] = float(rng.uniform(150, 380) if positive_oral else rng.uniform(2, 32))
    return Tissues(PHASES[phase], values)
