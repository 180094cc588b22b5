"""What a segment is, in SNOMED CT codes, found by its name.

The table is `terminology.json` beside this file. Its names are matched without regard to case, spaces, underscores,
hyphens, plural and the place of 'left' and 'right', so 'Kidney_Left', 'left kidney' and 'kidney (L)' are the same.
A finding may be named after where it is: 'liver tumor' is a neoplasm in the anatomic region liver.
"""

from __future__ import annotations

import colorsys
import json
import re
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

CODING_SCHEME = "SCT"
_SIDES = {"left": "left", "right": "right", "l": "left", "r": "right", "lt": "left", "rt": "right"}
_LESION = "lesion"

# What divides Slicer's string, its list of tags and the lines of a header: meanings come from files of others.
_DIVIDES_IN_SLICER = re.compile(r"[\^~|\\\s]+")


@dataclass(frozen=True)
class Code:
    """A coded concept of SNOMED CT (coding scheme designator SCT, DICOM PS3.16 section 8).

    Attributes
    ----------
    value : str
        Concept identifier.
    meaning : str
        The concept in words.
    """

    value: str
    meaning: str

    def to_slicer(self) -> str:
        """The code as part of Slicer's terminology string; what would divide that is a space."""
        return "^".join(_DIVIDES_IN_SLICER.sub(" ", part).strip() for part in (CODING_SCHEME, self.value, self.meaning))


@dataclass(frozen=True)
class Terminology:
    """What a segment is, as Slicer's `TerminologyEntry` and DICOM-SEG (PS3.3 C.8.20.4) say it.

    Attributes
    ----------
    category : Code
        Segmented property category.
    type : Code
        Segmented property type.
    color_rgb : tuple of 3 floats
        Color to show it in, each from 0 to 1: Slicer's own where it has one.
    modifier : Code or None
        Type modifier: Left or Right.
    region, region_modifier : Code or None
        Anatomic region that a finding is in, and its side.
    known : bool
        False if the name was not in the table, so that only Tissue is said.
    """

    category: Code
    type: Code
    color_rgb: tuple[float, float, float]
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None
    known: bool = True

    def to_slicer_tag(self) -> str:
        """The value of the segment tag `TerminologyEntry`, as Slicer 5.12 serializes it."""
        table = _table()
        parts = (self.category, self.type, self.modifier)
        region = (self.region, self.region_modifier)
        return "~".join(
            [
                table["context"],
                *(_slicer(code) for code in parts),
                table["region_context"],
                *(_slicer(code) for code in region),
            ]
        )


def terminology_of(name: str) -> Terminology:
    """Find the codes and the color of a segment by its name.

    Parameters
    ----------
    name : str
        As a user or a label list writes it.

    Returns
    -------
    Terminology
        For a name that is not in the table: Tissue, with a color that is always the same for that name and far from
        that of most others.
    """
    words = _words(name)
    found = _anatomy(words) or _finding(words)
    if found is not None:
        return found
    category = _code(_table()["categories"]["tissue"])
    return Terminology(category, Code(category.value, category.meaning), _color_of_name(" ".join(words)), known=False)


def terminology_of_segment(name: str, slicer_tag: str, color_rgb: tuple[float, float, float] | None) -> Terminology:
    """What a segment is that Slicer holds: what its user has chosen there, else what its name stands for.

    Parameters
    ----------
    name : str
        Of the segment.
    slicer_tag : str
        Value of its tag `TerminologyEntry`; codes that are not SNOMED CT and mere Tissue say less than the name.
    color_rgb : tuple of 3 floats or None
        In which it is shown, each from 0 to 1; if not known, that of the name.
    """
    by_name = terminology_of(name)
    color_rgb = by_name.color_rgb if color_rgb is None else color_rgb
    found = _from_slicer_tag(slicer_tag, color_rgb)
    if found is None or found.type.value == _table()["categories"]["tissue"][0]:
        return replace(by_name, color_rgb=color_rgb)
    return found


def _from_slicer_tag(tag: str, color_rgb: tuple[float, float, float]) -> Terminology | None:
    parts = tag.split("~")
    category, kind, modifier, region, region_modifier = (
        _from_slicer(parts[place]) if place < len(parts) else None for place in (1, 2, 3, 5, 6)
    )
    if category is None or kind is None:
        return None
    return Terminology(category, kind, color_rgb, modifier, region, region_modifier)


def _from_slicer(text: str) -> Code | None:
    scheme, _, rest = text.partition("^")
    value, _, meaning = rest.partition("^")
    return Code(value, meaning) if scheme == CODING_SCHEME and value and meaning else None


def _slicer(code: Code | None) -> str:
    return "^^" if code is None else code.to_slicer()


def _code(pair: list[str]) -> Code:
    return Code(*pair)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("terminology.json").read_text(encoding="utf-8")
    return json.loads(text)


@lru_cache(maxsize=1)
def _entries() -> dict[str, dict[str, Any]]:
    return {_key(_words(name)): entry for entry in _table()["entries"] for name in entry["names"]}


def _words(name: str) -> tuple[str, ...]:
    """'LeftKidney_1' -> ('left', 'kidney', '1')."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[^\W_]+", spaced.lower()))


def _key(words: tuple[str, ...]) -> str:
    """Words as one key, in the singular: a plural 's' is dropped, also where the singular has one, so both agree."""
    singular = [word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words]
    return "".join(singular)


def _split_side(words: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Take 'left' or 'right' (or a leading or trailing L or R) out of the words."""
    sides = [
        place
        for place, word in enumerate(words)
        if word in _SIDES and (len(word) > 2 or place in (0, len(words) - 1))  # 'l' within a name is no side
    ]
    if len(sides) != 1:
        return None, words
    place = sides[0]
    return _SIDES[words[place]], words[:place] + words[place + 1 :]


def _anatomy(words: tuple[str, ...]) -> Terminology | None:
    """The entry with just this name, with its side if the structure is paired."""
    entry = _entries().get(_key(words))
    if entry is not None:
        return _terminology(entry, None)
    side, rest = _split_side(words)
    entry = _entries().get(_key(rest))
    if side is None or entry is None:
        return None
    if entry["category"] == _LESION:
        return _terminology(entry, side)
    return _terminology(entry, side) if entry.get("paired") else None


def _finding(words: tuple[str, ...]) -> Terminology | None:
    """A finding with the structure that it is in, in any order: 'kidney cyst left', 'tumor of the liver', 'GTV 1'."""
    words = tuple(word for word in words if word not in ("of", "in", "the"))
    words = words[:-1] if len(words) > 1 and words[-1].isdigit() else words
    side, rest = _split_side(words)
    for length in (2, 1):
        for head, tail in ((rest[-length:], rest[:-length]), (rest[:length], rest[length:])):
            entry = _entries().get(_key(head))
            if entry is None or entry["category"] != _LESION:
                continue
            if not tail:
                return _terminology(entry, side)
            place = _anatomy((*tail, side) if side else tail)
            if place is not None and place.category.value == _table()["categories"]["anatomy"][0]:
                return Terminology(
                    category=_code(_table()["categories"][_LESION]),
                    type=Code(entry["code"], entry["meaning"]),
                    color_rgb=_rgb(entry),
                    region=place.type,
                    region_modifier=place.modifier,
                )
    return None


def _terminology(entry: dict[str, Any], side: str | None) -> Terminology:
    return Terminology(
        category=_code(_table()["categories"][entry["category"]]),
        type=Code(entry["code"], entry["meaning"]),
        color_rgb=_rgb(entry),
        modifier=_code(_table()["sides"][side]) if side else None,
        region=_code(entry["region"]) if "region" in entry else None,
    )


def _rgb(entry: dict[str, Any]) -> tuple[float, float, float]:
    red, green, blue = (part / 255 for part in entry["color"])
    return red, green, blue


def _color_of_name(name: str) -> tuple[float, float, float]:
    """A clear color that depends on the name only: a checksum, because `hash` differs from run to run."""
    checksum = zlib.crc32(name.encode())
    hue = (checksum % 4096) / 4096
    saturation = 0.55 + 0.1 * (checksum // 4096 % 4)
    value = 0.8 + 0.066 * (checksum // 16384 % 4)
    return colorsys.hsv_to_rgb(hue, saturation, value)
