"""Make the embedded weights of a finished run: float16 safetensors, and the card beside them.

python -m SAM2AssistLib.training.ship --run runs/mini [--metrics accuracy.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from SAM2AssistLib import __version__
from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.catalogue import ModelSpec, find_model
from SAM2AssistLib.io.atomic import atomic_paths

STAGES = ("slices", "clips", "refine", "mixed", "edges", "long")
LIMITS = (
    "Trained on few real CTs; made to be corrected by a user, not to be believed. For research; not a medical device.",
    "Most abdominal structures it has seen are procedural phantoms, one CT with automatic labels, and two with labels "
    "grown from hand-placed seeds.",
    "The trainer changed between the stages of this edition (clip sampling, loss of absent objects, shaken masks, "
    "labels grown from seeds, the refiner from the fifth stage on; mixed was stopped at 2000 of 2800 planned steps, "
    "and Muon had half its rate in the first 100 steps of long), so the command makes similar weights, not the same.",
    "Axial slices are what it has seen most; slices more than 9 mm apart were never shown.",
)


def ship(run: Path, metrics: Path | None) -> Path:
    """Write the weights and their card into the package.

    Parameters
    ----------
    run : folder of a finished training run.
    metrics : JSON file with measured accuracy, taken into the card as it is; a card without says so.

    Returns
    -------
    The weights file.
    """
    spec = find_model("mini")
    weights = store.weights_path(spec)
    weights.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(torch.float16) for name, tensor in load_file(run / f"{STAGES[-1]}.safetensors").items()}
    # In one step as far as can be: weights with the card of another run would be refused.
    with atomic_paths(weights, store.card_path(spec)) as (weights_part, card_part):
        # One entry only: their order is not fixed, and equal weights are to have equal hashes.
        save_file(state, weights_part, metadata={"format": "pt"})
        weights_part.chmod(0o644)  # safetensors makes files that only their owner can read
        card_part.write_text(json.dumps(_card(spec, weights_part, run, metrics), indent=1) + "\n", encoding="utf-8")
    return weights


def _card(spec: ModelSpec, weights: Path, run: Path, metrics: Path | None) -> dict[str, Any]:
    return {
        "name": spec.name,
        "version": __version__,
        "sha256": store.file_sha256(weights),
        "bytes": weights.stat().st_size,
        "parameters": spec.parameters,
        "architecture": spec.architecture,
        "image_size": spec.image_size,
        "precision": "float16, used as float32",
        "licence": spec.licence,
        "training": json.loads((run / "training.json").read_text()),
        "metrics": None if metrics is None else json.loads(metrics.read_text()),
        "limits": LIMITS,
    }


def main() -> None:
    """Parse the command line and ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished training run")
    parser.add_argument("--metrics", type=Path, help="measured accuracy (Testing/Benchmarks/accuracy.py --out)")
    arguments = parser.parse_args()
    print(ship(arguments.run, arguments.metrics))


if __name__ == "__main__":
    main()
