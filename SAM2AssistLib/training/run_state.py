"""The checkpoint of a fine-tuning run: everything from which it goes on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io.atomic import atomic_path, make_folder

CHECKPOINT = "checkpoint.pt"


@dataclass
class Position:
    """Where a run is.

    Attributes
    ----------
    epoch, step_in_epoch : the next step.
    step : optimiser steps done.
    encoded, decoded : slices encoded and rows decoded in training so far.
    seconds : of training so far.
    skipped : steps without effect, because their gradient was not finite.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    encoded: int = 0
    decoded: int = 0
    seconds: float = 0.0
    skipped: int = 0


@dataclass(frozen=True)
class RunState:
    """A run between two steps.

    Attributes
    ----------
    fingerprint : of settings and data.
    position : where it is.
    weights : tensors that train, by name.
    optimizer : AdamW's state.
    pruner : scores of CBDP, and `plan_scores`, those from which the epoch under way was planned.
    """

    fingerprint: str
    position: Position
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    pruner: dict[str, torch.Tensor]


def save_state(state: RunState, folder: Path) -> None:
    """Write a checkpoint; a kill at any moment leaves the one before or this one.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    make_folder(folder)
    content = {item.name: getattr(state, item.name) for item in fields(state)}
    content["position"] = asdict(state.position)
    with atomic_path(folder / CHECKPOINT) as part:
        torch.save(content, part)


def load_state(folder: Path, fingerprint: str) -> RunState | None:
    """Read the checkpoint of a run; None if there is none.

    Raises
    ------
    InputError
        If it is damaged, or of a run with other settings or data.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = RunState(**{**content, "position": Position(**content["position"])})
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, OSError) as error:
        raise InputError(f"The checkpoint {path} is damaged; remove it to begin anew.") from error
    if state.fingerprint != fingerprint:
        raise InputError(
            f"{folder.parent} holds an unfinished run with other settings or data; repeat its own command, or choose "
            "another folder."
        )
    return state
