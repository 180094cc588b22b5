"""Small volumes, networks and batches on which the tests of the training run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from SAM2AssistLib.engine.architecture import ARCHITECTURES, Architecture, build_sam2
from SAM2AssistLib.engine.refiner import EdgeRefiner
from SAM2AssistLib.training.volumes import LabelledVolume

TINY_SIZE = 64
TINY = Architecture(
    embed_dim=16,
    num_heads=1,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    window_spec=(8, 4, 4, 2),
    background_size=(2, 2),
    model_dim=32,
    memory_layers=1,
    memory_dim=16,
    memory_feedforward=64,
    several_masks=False,
)
"""A SAM2 of 0.9 million parameters: too small to be of use, large enough to have every part."""

HU_PER_LABEL = 200
AIR = -1000


def a_tiny_sam2(monkeypatch: pytest.MonkeyPatch, seed: int = 0):
    """Build the tiny SAM2 with weights that depend on the seed alone."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    torch.manual_seed(seed)
    model = build_sam2("tiny", TINY_SIZE)
    model.refiner = EdgeRefiner()
    return model


def an_l_and_a_block(
    shape_kji: tuple[int, int, int] = (40, 44, 48), spacing_kji: tuple[float, float, float] = (3.0, 2.0, 2.0)
) -> LabelledVolume:
    """In air, an L (label 1) that no mirror maps onto itself and a block (label 2); HU is 200 times the label."""
    labels = np.zeros(shape_kji, np.uint8)
    k, j, i = shape_kji
    labels[k // 6 : k // 2, j // 8 : j * 3 // 4, i // 8 : i // 3] = 1
    labels[k // 6 : k // 4, j // 2 : j * 3 // 4, i // 8 : i * 2 // 3] = 1
    labels[k // 2 : k * 3 // 4, j // 4 : j * 3 // 4, i // 2 : i * 4 // 5] = 2
    hu = np.where(labels > 0, labels.astype(np.int16) * HU_PER_LABEL, AIR).astype(np.int16)
    return LabelledVolume("an L and a block", hu, labels, spacing_kji)


def a_case(
    root: Path, name: str, hu: np.ndarray, labels: np.ndarray | None = None, spacing_ijk=(2.0, 2.0, 3.0)
) -> Path:
    """Write a case's folder as the data format says."""
    folder = root / name
    folder.mkdir(parents=True)
    for file_name, array in (("image.nii.gz", hu), ("label.nii.gz", labels)):
        if array is not None:
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(spacing_ijk)
            sitk.WriteImage(image, str(folder / file_name))
    return folder


def bright_squares(clips: int = 2, slices: int = 3, objects: int = 2) -> tuple[Tensor, Tensor]:
    """Images (B, T, 3, S, S) with one bright square per object, which drifts, and the masks (B, T, M, S, S)."""
    size = TINY_SIZE
    images = torch.full((clips, slices, 3, size, size), -1.0)
    masks = torch.zeros(clips, slices, objects, size, size, dtype=torch.bool)
    for b in range(clips):
        for t in range(slices):
            for m in range(objects):
                row, col = 8 + 28 * m + 2 * t, 10 + 20 * b + 2 * t
                masks[b, t, m, row : row + 18, col : col + 16] = True
                images[b, t, :, row : row + 18, col : col + 16] = 1.0 + 0.5 * m
    return images, masks


def logits_of(masks: Tensor, confidence: float = 20.0) -> Tensor:
    """Mask logits (N, 1, S/4, S/4) that say what (N, S, S) masks say; exact for masks on a grid of 4 pixels."""
    return (masks[:, None, 1::4, 1::4].float() * 2 - 1) * confidence
