"""Attaching LoRA adapters: peft's own files, merged into the network for inference, and switched between."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAM2AssistLib.engine import store
from SAM2AssistLib.errors import InputError, ModelError
from SAM2AssistLib.volume import Window

if TYPE_CHECKING:
    import torch
    from sam2.modeling.sam2_base import SAM2Base
    from torch import Tensor

    from SAM2AssistLib.engine.catalogue import ModelSpec

NEIGHBOURS = "slices"
"""Value of ``context`` in the card of an adapter whose channels are a slice and its neighbours."""
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "card.json"


def attach_adapter(model: SAM2Base, folder: Path, spec: ModelSpec) -> SAM2Base:
    """Add an adapter's low-rank updates to the weights of its base model.

    Parameters
    ----------
    model : the base model, with its weights loaded.
    folder : with ``adapter_config.json``, ``adapter_model.safetensors`` and ``card.json``, which names the base
        (``base_model``) and the SHA-256 of its weights (``base_sha256``).
    spec : catalogue entry of the base model.

    Returns
    -------
    The same network with the updates merged, so that inference costs nothing more.

    Raises
    ------
    ModelError
        If a file is missing or damaged, the adapter is for another base or for other weights of it, its tensors do not
        fit, or it is more than plain LoRA and the package peft, which knows such, is not installed.
    """
    check_adapter_files(folder)
    check_card(folder, spec)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    # torch comes with these, and the command line wants the checks of this file before that.
    from SAM2AssistLib.engine.low_rank import plain_updates
    from SAM2AssistLib.engine.split_qkv import SPLIT_KEY, fuse_qkv, split_qkv

    config = _json_in(folder, CONFIG_FILE)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    if any(SPLIT_KEY in name for name in weights):
        split_qkv(model)
    try:
        updates = plain_updates(config, model) or _UpdatesByPeft(folder, model)
    except (ValueError, TypeError, AttributeError, re.error) as error:  # peft takes any JSON for settings at first
        raise ModelError(
            f"The adapter in {folder} does not fit {spec.name} ({error}); make it again for it."
        ) from error
    wanted = updates.shapes()
    wrong = sorted(name for name in wanted.keys() | weights.keys() if wanted.get(name) != _shape(weights, name))
    if wrong:
        raise ModelError(f"The adapter in {folder} does not fit {spec.name}: {wrong[0]} differs; make it again for it.")
    broken = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ModelError(f"The adapter in {folder} is damaged: {broken} is not finite everywhere; make it again.")
    merged: SAM2Base = updates.merge(weights)
    fuse_qkv(merged)
    return merged


class _UpdatesByPeft:
    """What an adapter of a kind that only peft knows changes in a network, which becomes part of peft's."""

    def __init__(self, folder: Path, model: SAM2Base) -> None:
        try:
            import peft
        except ModuleNotFoundError as error:
            raise ModelError(
                f"The adapter in {folder} is more than plain LoRA and needs the package peft; install it with: pip "
                "install peft."
            ) from error
        try:
            config = peft.PeftConfig.from_pretrained(str(folder))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise _unreadable(folder, error) from error
        self.peft, self.adapted = peft, peft.PeftModel(model, config)

    def shapes(self) -> dict[str, torch.Size]:
        """Return the names and shapes that the adapter's file must have."""
        return {name: tensor.shape for name, tensor in self.peft.get_peft_model_state_dict(self.adapted).items()}

    def merge(self, weights: Mapping[str, Tensor]) -> Any:
        """Return the network with the weights added."""
        self.peft.set_peft_model_state_dict(self.adapted, dict(weights))
        return self.adapted.merge_and_unload()


class AdapterSwitch:
    """Adapters of one base, switched between in place, without reading the base again.

    Of the base only the tensors that some adapter changes are held twice, so leaving an adapter brings the base back
    bit by bit, however often one switches.

    Parameters
    ----------
    model : the base model, with its weights loaded and no adapter in it.
    spec : catalogue entry of the base model.
    """

    def __init__(self, model: SAM2Base, spec: ModelSpec) -> None:
        self.model, self.spec = model, spec
        self.active: str | None = None
        self._base: dict[str, Tensor] = {}
        self._merged: dict[str, dict[str, Tensor]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that can be switched to, in the order they were added."""
        return tuple(self._merged)

    def add(self, name: str, folder: Path) -> None:
        """Read an adapter, without switching to it.

        Raises
        ------
        ModelError
            As `attach_adapter` does; the model and the adapters added before stay as they are.
        """
        before = self.active
        self.use(None)
        try:
            # On a copy: an adapter that turns out not to fit must leave no trace in the network that is at work.
            merged = attach_adapter(copy.deepcopy(self.model), folder, self.spec).state_dict()
            base = self.model.state_dict()
            changed = {key: value for key, value in merged.items() if not value.equal(base[key])}
            self._base |= {key: base[key].clone() for key in changed if key not in self._base}
            self._merged[name] = changed
        finally:
            self.use(before)

    def use(self, name: str | None) -> None:
        """Switch to an adapter, or to the bare base with None.

        Features, masks and memories made before belong to the network as it was: open a new session.

        Raises
        ------
        ModelError
            If no adapter of that name was added.
        """
        if name is not None and name not in self._merged:
            raise ModelError(f"There is no adapter {name!r} to switch to; add it first.")
        target = self._base if name is None else self._base | self._merged[name]
        own = self.model.state_dict()
        for key, value in target.items():
            own[key].copy_(value)
        self.active = name


def read_card(folder: Path) -> dict[str, Any]:
    """Return what the card of an adapter says.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    return _json_in(folder, CARD_FILE)


def reads_neighbours(folder: Path) -> bool:
    """Tell whether an adapter was trained with the neighbouring slices as channels; its card says so.

    Raises
    ------
    ModelError
        If the card cannot be read.
    """
    return read_card(folder).get("context") == NEIGHBOURS


def trained_window(folder: Path) -> Window | None:
    """Return the HU window that an adapter was trained with; None where its card names none.

    Raises
    ------
    ModelError
        If the card cannot be read, or what it names is no window.
    """
    told = read_card(folder).get("window")
    if told is None:
        return None
    try:
        return Window(float(told["level"]), float(told["width"]))
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise _unreadable(folder, error) from error


def check_adapter_files(folder: Path) -> None:
    """Refuse a folder that is no adapter; what is in its files is looked at when they are loaded.

    Raises
    ------
    ModelError
        If a file is missing; the message says which.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is no adapter, because {name} is missing; name a folder that finetune wrote.")


def check_card(folder: Path, spec: ModelSpec) -> None:
    """Refuse an adapter whose card names another base, or other weights of it than those of this installation.

    Raises
    ------
    ModelError
        If it does, or if the card cannot be read.
    """
    card = read_card(folder)
    try:
        base, digest = str(card["base_model"]), str(card["base_sha256"]).lower()
    except KeyError as error:
        raise _unreadable(folder, error) from error
    if base != spec.name:
        raise ModelError(f"The adapter in {folder} is for {base}, not for {spec.name}; choose --model {base}.")
    if digest != store.expected_sha256(spec):
        raise ModelError(
            f"The adapter in {folder} was made for other weights of {base} (SHA-256 {digest[:16]}…) than those that are"
            " here; make it again for these, or install the version it was made with."
        )


def _json_in(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"{name} holds no JSON object")
    except (ValueError, TypeError, OSError) as error:
        raise _unreadable(folder, error) from error
    return content


def _unreadable(folder: Path, error: Exception) -> ModelError:
    return ModelError(f"The adapter in {folder} cannot be read ({error}); make it again.")


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
