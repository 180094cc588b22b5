"""Loading an engine: a model of the catalogue on a device, ready to open volumes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from SAM2AssistLib.engine.adapter import attach_adapter, reads_neighbours, trained_window
from SAM2AssistLib.engine.appearance import ONE_WINDOW, THREE_SLICES, THREE_WINDOWS, Channels
from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.catalogue import ModelSpec, find_model
from SAM2AssistLib.engine.checkpoint import check_fits, load_everything
from SAM2AssistLib.engine.device import choose_device
from SAM2AssistLib.engine.heap import keep_freed_memory
from SAM2AssistLib.engine.options import EngineOptions
from SAM2AssistLib.engine.refiner import PREFIX, EdgeRefiner, refiner_from
from SAM2AssistLib.engine.session import Session
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume, Window, automatic_window

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

CONDITIONING_LIMIT = 8
"""Prompted slices that a slice attends to at most, the nearest ones; bounds the cost of a much corrected segment."""


@dataclass(frozen=True, eq=False)
class Engine:
    """A model ready to work.

    Attributes
    ----------
    model : the network, in evaluation mode on its device.
    spec : its catalogue entry.
    options : for all sessions.
    adapter : folder of the adapter that is merged into the network, or None.
    refiner : of the model's masks, on its device, or None.
    """

    model: SAM2Base
    spec: ModelSpec
    options: EngineOptions
    adapter: Path | None = None
    refiner: EdgeRefiner | None = None

    @property
    def channels(self) -> Channels:
        """How the model, with its adapter, wants its three input channels."""
        if self.adapter is not None and reads_neighbours(self.adapter):
            return THREE_SLICES
        return THREE_WINDOWS if self.spec.three_windows else ONE_WINDOW

    @property
    def trained_window(self) -> Window | None:
        """The HU window that the adapter was trained with; None without one, or where its card names none."""
        return None if self.adapter is None else trained_window(self.adapter)

    def open(self, volume: CTVolume, *, axis: int = 0, window: Window | None = None) -> Session:
        """Start a session on a volume.

        Parameters
        ----------
        axis : array axis (0 = k, 1 = j, 2 = i) along which segments travel.
        window : HU window for the whole volume; if not given, the one that the adapter was trained with, or the
            abdominal one without such an adapter. What is not in HU is seen through an automatic one.
        """
        return Session(self, volume, axis, window or default_window(volume, self.trained_window))


def default_window(volume: CTVolume, trained: Window | None = None) -> Window:
    """Choose a window for a CT, the trained or the abdominal one, and for what does not look like one its tissue's."""
    if not looks_like_hounsfield(volume):
        return automatic_window(volume.array)
    return trained or WINDOW_PRESETS["abdomen"]


def looks_like_hounsfield(volume: CTVolume) -> bool:
    """Tell whether the values of a volume go down to those of fat and air."""
    return int(volume.array.min()) < -100


def load_engine(
    name: str = "mini",
    device: str = "auto",
    adapter: str | Path | None = None,
    options: EngineOptions | None = None,
) -> Engine:
    """Load a model of the catalogue.

    Parameters
    ----------
    name : such as "mini" (embedded) or "sam2.1-tiny" (fetched before).
    device : "auto", "cpu", "cuda", "cuda:N" or "mps".
    adapter : folder of a LoRA adapter made for this model.
    options : how sessions work; the defaults are what a user wants.

    Raises
    ------
    ModelError
        If the model is unknown, not on this computer, damaged, or does not fit, or if there is no such device.
    """
    spec = find_model(name)
    target = choose_device(device)
    model, refiner = _load(spec)
    if adapter is not None:
        model = attach_adapter(model, Path(adapter), spec)
    engine = engine_for(model.to(target).eval(), spec, options, refiner)
    return replace(engine, adapter=None if adapter is None else Path(adapter))


def load_base(spec: ModelSpec) -> SAM2Base:
    """Build a model of the catalogue with its verified weights, on the CPU.

    Raises
    ------
    ModelError
        If the weights are not on this computer, damaged, or do not fit.
    """
    return _load(spec)[0]


def _load(spec: ModelSpec) -> tuple[SAM2Base, EdgeRefiner | None]:
    model = build_sam2(spec.architecture, spec.image_size, max_cond_frames_in_attn=CONDITIONING_LIMIT)
    everything = load_everything(spec)
    refiner = refiner_from(everything)
    state = {name: tensor for name, tensor in everything.items() if not name.startswith(PREFIX)}
    check_fits(state, model)
    model.load_state_dict(state)
    return model, refiner


def engine_for(
    model: SAM2Base, spec: ModelSpec, options: EngineOptions | None = None, refiner: EdgeRefiner | None = None
) -> Engine:
    """Make an engine of a network that is in memory; what the options leave open follows the catalogue entry."""
    options = options or EngineOptions()
    if options.drawn_prompts is None:
        options = replace(options, drawn_prompts=spec.dense_prompts)
    if options.carried_logits is None:
        options = replace(options, carried_logits=spec.carries_logits)
    if options.half is None:
        options = replace(options, half=spec.bfloat16)
    if model.device.type == "cpu":
        keep_freed_memory()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if refiner is not None:
        refiner = refiner.to(model.device).requires_grad_(False)
    return Engine(model, spec, options, refiner=refiner)
