"""The engine that is measured: a model of the catalogue, at another input size or without its weights if wanted."""

from __future__ import annotations

from dataclasses import replace

import torch

from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.engine.checkpoint import check_fits, load_verified
from SAM2AssistLib.engine.device import choose_device
from SAM2AssistLib.engine.loading import CONDITIONING_LIMIT, Engine, engine_for

SEED = 0


def engine_to_measure(model: str, device: str, size: int | None = None, *, untrained: bool = False) -> Engine:
    """Make an engine to be measured.

    Parameters
    ----------
    model, device : as for `SAM2AssistLib.engine.loading.load_engine`.
    size : side of the network's input in pixels; that of the catalogue if not given.
    untrained : with random weights (always the same), for a model whose weights are not on this computer.

    Raises
    ------
    ModelError
        As `load_engine`, or if the size does not fit.
    """
    spec = find_model(model)
    size = spec.image_size if size is None else size
    torch.manual_seed(SEED)
    network = build_sam2(spec.architecture, size, max_cond_frames_in_attn=CONDITIONING_LIMIT)
    if not untrained:
        state = load_verified(spec)
        check_fits(state, network)
        network.load_state_dict(state)
    return engine_for(network.to(choose_device(device)), replace(spec, image_size=size))
