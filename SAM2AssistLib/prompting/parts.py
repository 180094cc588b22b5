"""Small networks that lie beside an adapter's head, each in a file of its own: read with care, written as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from SAM2AssistLib.engine.adapter import CARD_FILE
from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.io.atomic import atomic_path

Part = TypeVar("Part", bound=nn.Module)


def read_part(part: Part, path: Path) -> Part:
    """Fill a network with the numbers in a safetensors file; it is then in evaluation mode and trains no more.

    Raises
    ------
    ModelError
        If the file is damaged or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
        part.load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged or does not fit this model; make the adapter again.") from error
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ModelError(f"{path} is damaged, for not all of it is finite; make the adapter again.")
    return part.eval().requires_grad_(False)


def add_part(folder: Path, name: str, part: nn.Module, measured: Mapping[str, Any]) -> None:
    """Put a network into an adapter folder as ``NAME.safetensors``, and what was measured of it into the card."""
    from safetensors.torch import save_file

    with atomic_path(folder / f"{name}.safetensors") as beside:
        save_file({key: tensor.detach().contiguous() for key, tensor in part.state_dict().items()}, beside)
        beside.chmod(0o644)  # safetensors makes files that only their owner can read
    card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    with atomic_path(folder / CARD_FILE) as beside:
        beside.write_text(json.dumps({**card, name: measured}, indent=1) + "\n", encoding="utf-8")
