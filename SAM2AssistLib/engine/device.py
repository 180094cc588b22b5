"""Choosing the device, and the precision on it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from SAM2AssistLib.errors import ModelError

if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> torch.device:
    """Turn a device's name into a device that is there.

    Parameters
    ----------
    name : "auto" takes CUDA, else the CPU; or "cpu", "mps", "cuda", "cuda:N". MPS has to be asked for by name: the
        engine was never run on it, and not every version of torch has all of its operations there.

    Raises
    ------
    ModelError
        If the name is unknown or there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ModelError(f"There is no kind of device called {name!r}; choose auto, cpu, cuda, cuda:N or mps.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"There is no CUDA device {name!r} on this machine; choose --device cpu or auto.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("There is no MPS device on this machine; choose --device cpu or auto.")
    return device


def inference_precision(device: torch.device) -> AbstractContextManager[object]:
    """Compute in bfloat16 on a CUDA device that has it in hardware, in float32 anywhere else."""
    import torch

    if device.type == "cuda" and computes_in_bfloat16(device):
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def computes_in_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 matrices in hardware: recent CUDA devices, and CPUs with AMX."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without AMX a CPU has to emulate, and older versions of torch do not tell.
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and has_amx is not None and has_amx()
