"""Which series of a folder is meant, told and chosen without UIDs, which identify patients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._dicom_headers import ImageHeader
from SAM2AssistLib.io._dicom_stack import SAME_POSITION_MM


@dataclass(frozen=True)
class DicomSeries:
    """One image series of a folder, or one acquisition of a series that holds the same slices several times.

    Attributes
    ----------
    uid : str
        SeriesInstanceUID; not shown.
    description : str
        SeriesDescription, empty if there is none.
    modality : str
        "CT", "MR", ...
    count : int
        Number of images.
    label : str
        By which a user chooses it in this folder: the series number where it tells series apart, else its place in the
        list; with the acquisition number behind a dot where that does.
    """

    uid: str
    description: str
    modality: str
    count: int
    label: str = field(default="", compare=False)

    def __str__(self) -> str:
        """Give what a user needs to choose a series, without patient data."""
        images = "1 image" if self.count == 1 else f"{self.count} images"
        description, modality = self.description or "no description", self.modality or "no modality"
        return f"{self.label or '-'} ('{description}', {modality}, {images})"


@dataclass(frozen=True, eq=False)
class SeriesGroup:
    """The images of one series, or of one acquisition in it, and how a user chooses them."""

    summary: DicomSeries
    members: tuple[ImageHeader, ...]


def grouped(headers: Iterable[ImageHeader]) -> list[SeriesGroup]:
    """Images of each series, series with most images first.

    A series with several images at the same positions is taken apart by its acquisition numbers if that is why.
    """
    by_uid: dict[str, list[ImageHeader]] = {}
    for header in headers:
        by_uid.setdefault(header.series_uid, []).append(header)
    parts = [part for members in by_uid.values() for part in _acquisitions(members)]
    parts.sort(key=lambda part: (-len(part), part[0].series_uid, part[0].acquisition))
    labels = _labels(parts, split={part[0].series_uid for part in parts if _is_part(part, by_uid)})
    return [
        SeriesGroup(
            DicomSeries(part[0].series_uid, part[0].description, part[0].modality, len(part), label), tuple(part)
        )
        for part, label in zip(parts, labels, strict=True)
    ]


def chosen(
    folder: Path, groups: Sequence[SeriesGroup], series: str | None, image: Path | None = None
) -> tuple[SeriesGroup, tuple[str, ...]]:
    """Give the series that is meant, and a warning about others.

    Parameters
    ----------
    folder : Path
        Whose name the sentences have.
    groups : sequence of SeriesGroup
        At least one.
    series : str or None
        Label or SeriesInstanceUID; None if there is only one to choose.
    image : Path, optional
        A file of the series, which tells more than a UID that is empty or of several acquisitions; before `series`.

    Raises
    ------
    InputError
        If there is no such series, or several to choose from.
    """
    if image is not None:
        for group in groups:
            if any(header.path == image for header in group.members):
                return group, ()
    listed = "; ".join(str(group.summary) for group in groups)
    if series is not None:
        wanted = series.strip()
        matching = [group for group in groups if wanted == group.summary.label]
        matching = matching or [group for group in groups if wanted and wanted == group.summary.uid]
        if len(matching) == 1:
            return matching[0], ()
        if matching:
            raise InputError(f"The series was acquired several times, choose one with --series NUMBER: {listed}.")
        raise InputError(f"The folder '{folder.name}' holds no such series, only: {listed}.")
    candidates = [group for group in groups if _may_be_volume(group.members)] or list(groups)
    if len(candidates) > 1:
        raise InputError(
            f"The folder '{folder.name}' holds {len(candidates)} series, choose one with --series NUMBER: {listed}."
        )
    others = [str(group.summary) for group in groups if group is not candidates[0]]
    if not others:
        return candidates[0], ()
    return candidates[0], (f"In '{folder.name}' this was not read because it is no volume: {'; '.join(others)}.",)


def without_copies(folder: Path, images: Sequence[ImageHeader]) -> tuple[list[ImageHeader], tuple[str, ...]]:
    """Images of which each is there once, and a warning about files that are the same image again."""
    first: dict[tuple[str, int | None], ImageHeader] = {}
    copies = []
    kept = []
    for header in images:
        known = first.setdefault((header.sop_uid, header.frame), header)
        if header.sop_uid and known is not header:
            copies.append(header.path.name)
        else:
            kept.append(header)
    if not copies:
        return kept, ()
    names = ", ".join(copies[:3]) + (f" and {len(copies) - 3} others" if len(copies) > 3 else "")
    return kept, (f"In '{folder.name}' the same image is in several files, of which these were not read: {names}.",)


def _acquisitions(members: list[ImageHeader]) -> list[list[ImageHeader]]:
    """One acquisition each if they explain why several images are at the same position, else all as they are."""
    numbers = {header.acquisition for header in members if not header.is_localizer}
    if len(numbers) < 2 or not _collide(members):
        return [members]
    parts = [[header for header in members if header.acquisition == number] for number in sorted(numbers)]
    return [members] if any(_collide(part) for part in parts) else parts


def _collide(members: Sequence[ImageHeader]) -> bool:
    """Whether two images, which are not the same one in two files, lie at one position."""
    images = (header for header in members if header.frame is None and not header.is_localizer)
    unique = {header.sop_uid or header.path: header for header in images}
    positions = np.array([header.grid.position_lps for header in unique.values() if header.grid])
    if len(positions) < 2:
        return False
    rounded = np.rint(positions / SAME_POSITION_MM)
    return len(np.unique(rounded, axis=0)) < len(rounded)


def _is_part(part: Sequence[ImageHeader], by_uid: dict[str, list[ImageHeader]]) -> bool:
    return len(part) < len(by_uid[part[0].series_uid])


def _labels(parts: Sequence[Sequence[ImageHeader]], split: set[str]) -> list[str]:
    """Numbers that scanners gave, if they tell all series apart; else places in the list."""
    labels = [
        f"{part[0].number}.{part[0].acquisition}" if part[0].series_uid in split else part[0].number for part in parts
    ]
    if all(labels) and len(set(labels)) == len(labels):
        return labels
    return [str(place) for place in range(1, len(parts) + 1)]


def _may_be_volume(members: Sequence[ImageHeader]) -> bool:
    """Whether a series is more than a localizer or a single image."""
    images = [header for header in members if not header.is_localizer]
    return len(images) > 1 or any(header.frames > 1 for header in images)
