"""Who made a segmentation: what DICOM objects say of the program, its weights and its adapter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from SAM2AssistLib import __version__

PROGRAM = "SAM2Assist"

# What an adapter is made of besides its card (see the contract of adapters); the card is prose and may be edited.
_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "self_prompt.safetensors",
    "error_head.safetensors",
)


@dataclass(frozen=True)
class Algorithm:
    """The algorithm that made a segmentation (DICOM PS3.3, 10.16 Algorithm Identification Macro).

    Attributes
    ----------
    is_automatic : bool
        True where no user prompted or corrected: Segment Algorithm Type AUTOMATIC instead of SEMIAUTOMATIC.
    model, model_sha256 : str
        Name of the model and SHA-256 of its weights; empty where not known, as for an imported segmentation.
    adapter, adapter_sha256 : str
        Name of the adapter's folder and SHA-256 of its files; empty without one.
    name, version : str
        Of the program.
    """

    is_automatic: bool = False
    model: str = ""
    model_sha256: str = ""
    adapter: str = ""
    adapter_sha256: str = ""
    name: str = PROGRAM
    version: str = __version__

    @property
    def segment_algorithm_type(self) -> str:
        """Value of Segment Algorithm Type (0062,0008)."""
        return "AUTOMATIC" if self.is_automatic else "SEMIAUTOMATIC"

    @property
    def parameters(self) -> dict[str, str]:
        """What Algorithm Parameters (0066,0032) says, without what is not known."""
        told = {
            "model": self.model,
            "model_sha256": self.model_sha256,
            "adapter": self.adapter,
            "adapter_sha256": self.adapter_sha256,
        }
        return {key: value for key, value in told.items() if value}

    @property
    def made_with(self) -> dict[str, str]:
        """What the prompts that are kept with a result say of it."""
        return {"program": f"{self.name} {self.version}", **self.parameters}


def adapter_sha256(folder: str | Path) -> str:
    """SHA-256 over the names and contents of the files that an adapter works by, in lower-case hexadecimal.

    Parameters
    ----------
    folder : str or Path
        The adapter; files that it lacks are passed over.
    """
    digest = hashlib.sha256()
    for name in _ADAPTER_FILES:
        path = Path(folder, name)
        if path.is_file():
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
