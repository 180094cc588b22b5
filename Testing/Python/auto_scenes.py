"""A self-prompt head that has learned two balls, for the tests of Auto-Segment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from blobs import BLOB_HU, two_blobs

from SAM2AssistLib.engine.loading import Engine
from SAM2AssistLib.prompting.self_prompt import SelfPrompter
from SAM2AssistLib.prompting.voxel_head import VoxelPromptHead
from SAM2AssistLib.training.self_prompt_scans import LabelledScan, training_scan
from SAM2AssistLib.training.self_prompt_training import channels_of, head_loss
from SAM2AssistLib.volume import CTVolume

BALLS = ("left ball", "right ball")
KNOWN = (*BALLS, "cube")


def balls(shape: tuple[int, int, int] = (10, 64, 64)) -> tuple[CTVolume, dict[str, np.ndarray]]:
    """Two balls in a volume, and their masks by name."""
    scene = two_blobs(shape)
    bright = scene.volume.array == BLOB_HU
    middle = np.arange(shape[2]) < scene.centres_kji[:, 2].mean()
    return scene.volume, {BALLS[0]: bright & middle, BALLS[1]: bright & ~middle}


def a_learned_head(engine: Engine, steps: int = 60) -> VoxelPromptHead:
    """Teach a small head where the balls are; it never sees a cube."""
    volume, masks = balls()
    scan = training_scan(engine, LabelledScan("balls", volume, masks), KNOWN)
    torch.manual_seed(0)
    head = VoxelPromptHead(channels_of(engine), len(KNOWN), width=12)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    levels = tuple(level.float() for level in scan.features.levels)
    truth = torch.nn.functional.adaptive_avg_pool2d(scan.truth.float(), levels[-1].shape[-1])
    for _ in range(steps):
        loss = head_loss(head(levels), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


def a_prompter(engine: Engine, head: VoxelPromptHead) -> SelfPrompter:
    """A self-prompter of the head."""
    return SelfPrompter(engine, head, KNOWN, KNOWN, dict.fromkeys(KNOWN, 0.5))


def edit_card(folder: Path, **changes: object) -> None:
    """Change the card of an adapter."""
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
