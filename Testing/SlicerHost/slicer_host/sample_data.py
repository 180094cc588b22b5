"""The module ``SampleData``: what is registered is kept, and nothing is downloaded."""

from __future__ import annotations

from types import ModuleType
from typing import Any

# What modules have registered: the arguments of each call.
sources: list[dict[str, Any]] = []


class SampleDataLogic:
    """The logic of Sample Data, as far as modules register with it."""

    @staticmethod
    def registerCustomSampleDataSource(category: str = "Custom", sampleName: str | None = None, **details: Any) -> None:
        """Keep a source.

        Raises
        ------
        ValueError
            If there is no name, no address, or an address without a checksum.
        """
        if not sampleName or not details.get("uris"):
            raise ValueError("A sample needs a name and an address")
        if not details.get("checksums"):
            raise ValueError(f"{sampleName}: no checksum")
        sources.append({"category": category, "sampleName": sampleName, **details})


def make_module() -> ModuleType:
    """Return ``SampleData``."""
    module = ModuleType("SampleData", __doc__)
    module.SampleDataLogic = SampleDataLogic  # type: ignore[attr-defined]
    return module
