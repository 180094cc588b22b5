"""The CT of the tutorial, as Slicer's Sample Data module offers it."""

from __future__ import annotations

from typing import Any

CATEGORY, NAME, FILE = "SAM2 Assist", "SAM2AssistLiver", "CTLiver.nrrd"

SHA256 = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"
"""Of the liver CT 100 of the Medical Segmentation Decathlon (CC BY-SA 4.0), as Slicer's own Sample Data module has it;
the place where it lies is named after it."""


def register(sample_data_logic: Any) -> None:
    """Offer the CT; it is fetched when the user asks for it, and refused by Slicer if it is not that of the checksum.

    Parameters
    ----------
    sample_data_logic : ``SampleData.SampleDataLogic``.
    """
    sample_data_logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=NAME,
        uris=f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{SHA256}",
        fileNames=FILE,
        checksums=f"SHA256:{SHA256}",
        nodeNames="CTLiver",
    )
