"""The models that can be chosen by name: where their weights come from, under which licence, and how they want a slice.

Only numbers and names live here; where the files lie on this computer is the business of `SAM2AssistLib.engine.store`,
and what is in them that of `SAM2AssistLib.engine.checkpoint`. torch is not needed.

Sources
-------
SAM 2.1: Ravi et al. 2024, "SAM 2: Segment Anything in Images and Videos" (arXiv 2408.00714); the checkpoints of
September 2024.
MedSAM2: Ma et al. 2025, "MedSAM2: Segment Anything in 3D Medical Images and Videos" (arXiv 2504.03600); one fixed
revision of the authors' repository, so that the file behind the address cannot change.

The byte counts and SHA-256 values are those that several independent public projects record for the same files. The
parameter counts were taken by building the architectures.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from SAM2AssistLib.errors import ModelError

_META_FOLDER = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"
_META_PROJECT = "https://github.com/facebookresearch/sam2"
_MEDSAM2_PROJECT = "https://huggingface.co/wanglab/MedSAM2"
_MEDSAM2_REVISION = "e4a6f35edd7e091619cbc0750f462f1574e23955"


@dataclass(frozen=True)
class ModelSpec:
    """One model of the catalogue.

    Attributes
    ----------
    name, title
        What is typed (``--model``), and what is shown.
    architecture
        Key of `SAM2AssistLib.engine.architecture.ARCHITECTURES`.
    image_size
        Side of the square network input in pixels.
    parameters
        Number of trained parameters.
    file_name
        Name of the weights file in the cache folder, or in the package for an embedded model.
    size_bytes
        Size of the published file; None where only the file itself can tell (embedded).
    url
        Where the weights are published; None for an embedded model.
    source
        Page with the model's description and licence; for an embedded model its card in the package.
    licence
        Of the weights.
    sha256
        Of the published file, in lower-case hexadecimal. None: an embedded model has it in its card, any other is
        pinned the first time it is fetched.
    embedded
        Whether the weights are part of this package.
    dense_prompts
        Whether clicks and boxes are also drawn into SAM2's low-resolution mask prompt, as in the model's training.
    carries_logits
        Whether, in a propagation, the mask logits of one slice are the mask prompt of the next, beside the memory.
    bfloat16
        Whether the model was made to be run in bfloat16, as the published ones are by their authors.
    three_windows
        Whether the three input channels are three HU windows (see `SAM2AssistLib.engine.appearance`) instead of one
        thrice.
    note
        What a user should know before choosing it; one sentence.
    """

    name: str
    title: str
    architecture: str
    image_size: int
    parameters: int
    file_name: str
    source: str
    licence: str
    size_bytes: int | None = None
    url: str | None = None
    sha256: str | None = None
    embedded: bool = False
    dense_prompts: bool = False
    carries_logits: bool = False
    bfloat16: bool = True
    three_windows: bool = False
    note: str = ""


def _sam21(
    name: str, title: str, architecture: str, *, file_name: str, parameters: int, size_bytes: int, sha256: str
) -> ModelSpec:
    return ModelSpec(
        name=name,
        title=title,
        architecture=architecture,
        image_size=1024,
        parameters=parameters,
        file_name=file_name,
        source=_META_PROJECT,
        licence="Apache-2.0",
        size_bytes=size_bytes,
        url=_META_FOLDER + file_name,
        sha256=sha256,
        note="Trained on natural images and videos; not trained on CT.",
    )


CATALOGUE: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="mini",
        title="SAM2Assist mini",
        architecture="mini",
        image_size=256,
        parameters=4_358_594,
        file_name="mini.safetensors",
        source="SAM2AssistLib/engine/weights/mini.card.json",
        licence="Apache-2.0",
        embedded=True,
        dense_prompts=True,
        carries_logits=True,
        bfloat16=False,
        three_windows=True,
        note="Comes with the package and runs on a CPU; trained from scratch on CT phantoms and a few public CTs.",
    ),
    _sam21(
        "sam2.1-tiny",
        "SAM 2.1 tiny",
        "hiera_t",
        file_name="sam2.1_hiera_tiny.pt",
        parameters=38_962_498,
        size_bytes=156_008_466,
        sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    _sam21(
        "sam2.1-small",
        "SAM 2.1 small",
        "hiera_s",
        file_name="sam2.1_hiera_small.pt",
        parameters=46_060_354,
        size_bytes=184_416_285,
        sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    ),
    _sam21(
        "sam2.1-base+",
        "SAM 2.1 base+",
        "hiera_b+",
        file_name="sam2.1_hiera_base_plus.pt",
        parameters=80_850_178,
        size_bytes=323_606_802,
        sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    _sam21(
        "sam2.1-large",
        "SAM 2.1 large",
        "hiera_l",
        file_name="sam2.1_hiera_large.pt",
        parameters=224_446_642,
        size_bytes=898_083_611,
        sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
    ModelSpec(
        name="medsam2",
        title="MedSAM2",
        architecture="hiera_t",
        image_size=512,
        parameters=38_962_498,
        file_name="MedSAM2_latest.pt",
        source=_MEDSAM2_PROJECT,
        # The page's metadata say CC-BY-SA-4.0; its text limits the weights to research and education. Both are told.
        licence="CC-BY-SA-4.0, research and education only",
        size_bytes=156_040_129,
        url=f"{_MEDSAM2_PROJECT}/resolve/{_MEDSAM2_REVISION}/MedSAM2_latest.pt",
        sha256="c92743b99f00d078bf32a3afcc38aaa9faf1c1692dffe3eaa7a90938c1991060",
        note="SAM 2.1 tiny trained further on CT, MR, ultrasound and endoscopy by its authors.",
    ),
)


def model_names() -> tuple[str, ...]:
    """Return the names that `find_model` knows, in catalogue order."""
    return tuple(spec.name for spec in CATALOGUE)


def find_model(name: str) -> ModelSpec:
    """Return the model of that name.

    Raises
    ------
    ModelError
        If there is none; the message has the nearest names, or all of them.
    """
    for spec in CATALOGUE:
        if spec.name == name.strip().lower():
            return spec
    near = difflib.get_close_matches(name.lower(), model_names(), n=3, cutoff=0.5) or list(model_names())
    raise ModelError(f"There is no model {name!r}; choose {' or '.join(near)}.")
