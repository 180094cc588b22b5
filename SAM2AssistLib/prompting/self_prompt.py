"""SAM2-SP at work: a trained voxel prompt head, loaded from an adapter folder, that makes class maps of a volume."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from SAM2AssistLib.engine.adapter import attach_adapter, check_adapter_files, check_card, read_card, trained_window
from SAM2AssistLib.errors import ModelError
from SAM2AssistLib.prompting.class_maps import ClassMaps
from SAM2AssistLib.prompting.guidance import GUIDANCE_NAME, MaskGuidance, load_guidance
from SAM2AssistLib.prompting.parts import read_part
from SAM2AssistLib.prompting.trunk import TRUNK_NAME, TrunkSense, load_trunk_sense
from SAM2AssistLib.prompting.voxel_features import VoxelFeatures
from SAM2AssistLib.prompting.voxel_head import VoxelPromptHead
from SAM2AssistLib.volume import WINDOW_PRESETS, CTVolume, Window

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine

HEAD_NAME = "self_prompt"
HEAD_FILE = f"{HEAD_NAME}.safetensors"
EMBEDDED_FOLDER = Path(__file__).resolve().parent / "adapters"


@dataclass(frozen=True, eq=False)
class SelfPrompter:
    """A head and the network whose features it reads.

    Attributes
    ----------
    engine : the network with the adapter merged into it.
    head : in evaluation mode, on the engine's device.
    known : the classes that the head tells apart, in its order.
    classes : those of them that it is good enough at to be asked for.
    presence : by class, the least confidence that counts as present.
    guidance : of the network's mask decoder by pseudo-masks, for support cases; None if the adapter has none.
    least_ml : what is smaller is no organ, nor a part of one that is worth a segment.
    trunk : tells which slices can show the classes at all; None if the adapter has none, and all can.
    window : HU window that the head was trained with.
    """

    engine: Engine
    head: VoxelPromptHead
    known: tuple[str, ...]
    classes: tuple[str, ...]
    presence: dict[str, float]
    least_ml: float = 0.0
    guidance: MaskGuidance | None = None
    trunk: TrunkSense | None = None
    window: Window = WINDOW_PRESETS["abdomen"]

    def window_for(self, volume: CTVolume, chosen: Window) -> Window:
        """Return the window through which the head sees a volume, whichever was chosen for the masks.

        Through another one than its own it finds nothing, or nonsense. But where values are no HU, the chosen one tells
        what scale they have.
        """
        from SAM2AssistLib.engine.loading import looks_like_hounsfield

        return self.window if looks_like_hounsfield(volume) else chosen

    def maps(self, features: VoxelFeatures) -> ClassMaps:
        """Classify the voxels of a volume; all known classes compete, whichever are asked for."""
        probabilities = self.head.probabilities(features)
        if self.trunk is not None:
            elsewhere = torch.from_numpy(~self.trunk.slices(features))
            probabilities[elsewhere] = 0
            probabilities[elsewhere, 0] = 1
        return ClassMaps(self.known, probabilities, features.view, features.distance_mm)


def has_embedded_adapter(model: str) -> bool:
    """Tell whether an adapter for a model comes with the package."""
    return has_head(EMBEDDED_FOLDER / model)


def embedded_adapter(model: str) -> Path:
    """Return the folder of the adapter that comes with the package for a model.

    Raises
    ------
    ModelError
        If there is none.
    """
    if not has_embedded_adapter(model):
        raise ModelError(
            f"No adapter for {model} comes with the package; name one with --adapter DIR, or finished cases with "
            "--support IMAGE MASK."
        )
    return EMBEDDED_FOLDER / model


def has_head(folder: Path) -> bool:
    """Tell whether an adapter has a self-prompt head; one of ``sam2assist finetune`` has none."""
    return (folder / HEAD_FILE).is_file()


def is_in(engine: Engine, folder: Path) -> bool:
    """Tell whether an engine was loaded with an adapter."""
    return engine.adapter is not None and engine.adapter.resolve() == folder.resolve()


def only_segments(engine: Engine, folder: Path) -> bool:
    """Tell whether an adapter is at work in an engine's masks, and has no head that says where a class is."""
    return is_in(engine, folder) and not has_head(folder)


def load_finder(engine: Engine, adapter: Path | None) -> SelfPrompter:
    """Load the head that finds classes: that of an adapter, or the embedded one.

    Parameters
    ----------
    engine : which segments what is found.
    adapter : that was asked for, if any. Where it `only_segments`, the embedded head finds what its masks are of.

    Raises
    ------
    ModelError
        As `load_self_prompter` and `embedded_adapter` do.
    """
    name = engine.spec.name
    if adapter is None or (only_segments(engine, adapter) and has_embedded_adapter(name)):
        adapter = embedded_adapter(name)
    return load_self_prompter(engine, adapter)


def load_self_prompter(engine: Engine, folder: Path) -> SelfPrompter:
    """Load the self-prompt head of an adapter.

    Parameters
    ----------
    engine : for the base that the adapter was made for. Where it was loaded without the adapter, the head reads a
        second network with the adapter in it, and the engine itself stays as it is.
    folder : of the adapter.

    Raises
    ------
    ModelError
        If the folder is no adapter, has no self-prompt head, is for another base, or is damaged.
    """
    check_adapter_files(folder)
    if not has_head(folder):
        raise ModelError(
            f"The adapter in {folder} has no self-prompt head ({HEAD_FILE}); name one that was trained with it, or "
            "give finished cases with --support IMAGE MASK."
        )
    card = read_card(folder)
    told = _head_in(card, folder)
    adapted = engine
    if told.frozen_base and engine.adapter is None:
        check_card(folder, engine.spec)  # nothing to attach
    elif not is_in(engine, folder):
        adapted = _with_adapter(engine, folder)
    try:
        head = VoxelPromptHead(told.channels, len(told.known), told.width)
    except (ValueError, RuntimeError) as error:  # there are no networks of such sizes
        raise _unusable(folder, error) from error
    read_part(head, folder / HEAD_FILE)
    # What the card does not tell of was left behind by an adapter that was in the folder before.
    guidance = load_guidance(folder, adapted.model.sam_mask_decoder) if GUIDANCE_NAME in card else None
    trunk = load_trunk_sense(folder, head.channels[0]) if TRUNK_NAME in card else None
    window = trained_window(folder) or SelfPrompter.window
    on_device = head.to(engine.model.device)
    return SelfPrompter(
        adapted, on_device, told.known, told.classes, told.presence, told.least_ml, guidance, trunk, window
    )


@dataclass(frozen=True)
class _ToldHead:
    """What a card says of a head; see `SelfPrompter` and `VoxelPromptHead`."""

    known: tuple[str, ...]
    classes: tuple[str, ...]
    presence: dict[str, float]
    channels: tuple[int, ...]
    width: int
    least_ml: float
    frozen_base: bool


def _head_in(card: dict[str, Any], folder: Path) -> _ToldHead:
    settings = card.get(HEAD_NAME)
    if not isinstance(settings, dict):
        raise ModelError(f"The card in {folder} says nothing of a self-prompt head; make the adapter again.")
    missing = {"known", "classes", "channels", "width", "presence", "frozen_base"} - settings.keys()
    if missing:
        raise ModelError(f"The card in {folder} lacks {sorted(missing)[0]!r} of the head; make the adapter again.")
    try:
        known = tuple(str(name) for name in settings["known"])
        classes = tuple(name for name in settings["classes"] if name in known)
        presence = {name: float(settings["presence"][name]) for name in classes}
        if not all(0 <= least <= 1 for least in presence.values()):
            raise ValueError("presence beyond 0 and 1")
        channels, width = tuple(int(count) for count in settings["channels"]), int(settings["width"])
        least_ml = float(settings.get("least_ml", 0.0))
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(folder, error) from error
    return _ToldHead(known, classes, presence, channels, width, least_ml, bool(settings["frozen_base"]))


def _unusable(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"What the card in {folder} says of the head is incomplete or wrong ({error}); make the adapter again."
    )


def _with_adapter(engine: Engine, folder: Path) -> Engine:
    """Load the base once more, with the adapter in it."""
    from SAM2AssistLib.engine.loading import load_base

    model = attach_adapter(load_base(engine.spec), folder, engine.spec)
    model = model.to(engine.model.device).eval().requires_grad_(False)
    return replace(engine, model=model, adapter=folder)
