"""What DICOM-SEG says of each segment: PS3.3 C.8.20.4, in highdicom's words and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.uid import RE_VALID_UID

from SAM2AssistLib.io._image_grid import text_in
from SAM2AssistLib.io.algorithm import PROGRAM, Algorithm
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.terminology import CODING_SCHEME, Code, Terminology, terminology_of

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

# Longest value of VR LO (PS3.5, 6.2), of which Segment Label and Code Meaning are, and what may not be in one.
_LO_LENGTH = 64
_NOT_IN_LO = re.compile(r"[\x00-\x1f\x7f]+")

_UID_LENGTH = 64

# 16 bits for a value of 0 to 100 and of -128 to 127 (PS3.3 C.10.7.1.1).
_CIELAB_STEPS = 65535.0


def label_of(name: str) -> str:
    """A name as a Segment Label: a backslash would divide it; line breaks and over 64 characters are not allowed."""
    return _as_lo(name) or "segment"


def notes_on_labels(masks: Sequence[NamedMask]) -> list[str]:
    """Tell which names are not what they were; a sentence each."""
    return [
        f"'{named.name}' is longer or has other characters than a DICOM label may; it is '{label_of(named.name)}'."
        for named in masks
        if label_of(named.name) != named.name
    ]


def describe(masks: Sequence[NamedMask], algorithm: Algorithm) -> list[SegmentDescription]:
    """Describe segments, numbered from 1.

    Parameters
    ----------
    masks : sequence of NamedMask
    algorithm : Algorithm
        Who made them.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.uid import UID
    from pydicom.sr.codedict import codes

    identification = AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=codes.DCM.ArtificialIntelligence,
        version=algorithm.version,
        source=PROGRAM,
        parameters=algorithm.parameters or None,
    )
    descriptions = []
    for number, named in enumerate(masks, 1):
        coded = named.coded
        label = label_of(named.name)
        description = SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=_dicom_code(coded.category),
            segmented_property_type=_dicom_code(coded.type),
            algorithm_type=algorithm.segment_algorithm_type,
            algorithm_identification=identification,
            tracking_uid=named.tracking_uid if _is_uid(named.tracking_uid) else UID(),
            tracking_id=label,
            anatomic_regions=[_dicom_code(coded.region)] if coded.region else None,
            display_color=CIELabColor.from_rgb(*(round(255 * part) for part in coded.color_rgb)),
        )
        if label != named.name:
            description.SegmentDescription = named.name[:1024]
        if coded.modifier:
            type_item = description.SegmentedPropertyTypeCodeSequence[0]
            type_item.SegmentedPropertyTypeModifierCodeSequence = [_code_item(coded.modifier)]
        if coded.region and coded.region_modifier:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [_code_item(coded.region_modifier)]
        descriptions.append(description)
    return descriptions


def name_of(description: Dataset) -> str:
    """The name of a segment of a DICOM-SEG: its whole name where the label had to be cut, else the label."""
    label, whole = text_in(description, "SegmentLabel"), text_in(description, "SegmentDescription")
    if whole and label_of(whole) == label:
        return whole
    return label or f"Segment_{description.get('SegmentNumber', 0)}"


def terminology_in(description: Dataset) -> Terminology:
    """The codes and color of a segment of a DICOM-SEG; the codes of its name if its own are not SNOMED CT."""
    category = _code_in(description, "SegmentedPropertyCategoryCodeSequence")
    kind = _code_in(description, "SegmentedPropertyTypeCodeSequence")
    if category is None or kind is None:
        return replace(terminology_of(name_of(description)), color_rgb=_color_in(description))
    type_item = description.SegmentedPropertyTypeCodeSequence[0]
    region = _code_in(description, "AnatomicRegionSequence")
    region_item = description.AnatomicRegionSequence[0] if region else Dataset()
    return Terminology(
        category=category,
        type=kind,
        color_rgb=_color_in(description),
        modifier=_code_in(type_item, "SegmentedPropertyTypeModifierCodeSequence"),
        region=region,
        region_modifier=_code_in(region_item, "AnatomicRegionModifierSequence"),
    )


def _dicom_code(code: Code) -> CodedConcept:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, CODING_SCHEME, _meaning_of(code))


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, CODING_SCHEME, _meaning_of(code)
    return item


def _is_uid(text: str) -> bool:
    """Whether a UID may be written again (PS3.5, 9.1); pydicom's own test logs one that may not."""
    return len(text) <= _UID_LENGTH and re.fullmatch(RE_VALID_UID, text) is not None


def _meaning_of(code: Code) -> str:
    """Code Meaning, of type 1 and VR LO: terminologies of others have longer ones, and segmentations of others none."""
    return _as_lo(code.meaning) or code.value


def _as_lo(text: str) -> str:
    return _NOT_IN_LO.sub(" ", text).replace("\\", "/").strip()[:_LO_LENGTH].strip()


def _code_in(holder: Dataset, keyword: str) -> Code | None:
    items = holder.get(keyword)
    if not items or items[0].get("CodingSchemeDesignator") != CODING_SCHEME or not items[0].get("CodeValue"):
        return None
    return Code(str(items[0].CodeValue), text_in(items[0], "CodeMeaning"))


def _color_in(description: Dataset) -> tuple[float, float, float]:
    """The recommended color as RGB from 0 to 1; where there is none, that of the name."""
    from skimage.color import lab2rgb

    stored = description.get("RecommendedDisplayCIELabValue")
    if not stored or len(stored) != 3:
        return terminology_of(name_of(description)).color_rgb
    light, a_star, b_star = (float(value) / _CIELAB_STEPS for value in stored)
    red, green, blue = lab2rgb([100 * light, 255 * a_star - 128, 255 * b_star - 128]).tolist()
    return red, green, blue
