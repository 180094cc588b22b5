"""What a DICOM server is to this program, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.io._image_grid import text_in


@dataclass(frozen=True)
class RemoteSeries:
    """A series that a server has.

    Attributes
    ----------
    study_uid, series_uid : str
        Its identity; never shown.
    number : str
        Series number as the scanner counts, empty if there is none.
    modality, description : str
        What it is.
    count : int or None
        Number of images, None if the server does not tell.
    """

    study_uid: str
    series_uid: str
    number: str
    modality: str
    description: str
    count: int | None

    @classmethod
    def answered(cls, study_uid: str, answer: Dataset) -> RemoteSeries:
        """Take a server's answer to the question for the series of a study."""
        count = answer.get("NumberOfSeriesRelatedInstances")
        return cls(
            study_uid=study_uid,
            series_uid=text_in(answer, "SeriesInstanceUID"),
            number=text_in(answer, "SeriesNumber"),
            modality=text_in(answer, "Modality"),
            description=text_in(answer, "SeriesDescription"),
            count=int(count) if count else None,
        )

    def __str__(self) -> str:
        """Give what a user needs to choose a series, without patient data."""
        images = "" if self.count is None else f", {self.count} image{'' if self.count == 1 else 's'}"
        return f"{self.number or 'no number'} ('{self.description or 'no description'}', {self.modality}{images})"


@dataclass(frozen=True)
class Instance:
    """The identity of one DICOM object: study, series and SOP instance UID; never shown."""

    study_uid: str
    series_uid: str
    sop_uid: str


@dataclass(frozen=True)
class TransferStep:
    """Progress of a transfer.

    Attributes
    ----------
    done : int
        Objects that are through.
    total : int or None
        Of how many, None if the server does not tell.
    """

    done: int
    total: int | None


class Archive(Protocol):
    """A DICOM server. Every method raises `TransferError` if it cannot be reached or refuses."""

    @property
    def name(self) -> str:
        """What sentences call it: its address without credentials and paths."""

    def series_of(self, study_uid: str) -> list[RemoteSeries]:
        """List the series of a study."""

    def fetch(self, series: RemoteSeries) -> Iterator[Dataset]:
        """Give the objects of a series one by one, each with its file meta information."""

    def store(self, files: Sequence[Path]) -> Iterator[Path]:
        """Send files; each is given back when the server has accepted it."""

    def holds(self, instance: Instance) -> bool:
        """Ask whether the server has an object now."""


def choose(found: Sequence[RemoteSeries], wanted: str | None, server: str) -> RemoteSeries:
    """Find the series that is meant.

    Parameters
    ----------
    found : sequence of RemoteSeries
        The series of one study.
    wanted : str or None
        SeriesInstanceUID or series number; None if there is only one, or only one CT.
    server : str
        What the sentence calls the server.

    Raises
    ------
    InputError
        If there is no such series, or several to choose from.
    """
    if not found:
        raise InputError(f"{server} has no such study; check what follows --study.")
    listed = "; ".join(map(str, sorted(found, key=lambda series: series.number.zfill(8))))
    if wanted is not None:
        matching = [series for series in found if wanted in (series.series_uid, series.number)]
        if len(matching) == 1:
            return matching[0]
        how_many = "no such series" if not matching else "several series of that number, so give its UID,"
        raise InputError(f"The study has {how_many} among: {listed}.")
    candidates = [series for series in found if series.modality == "CT"] or list(found)
    if len(candidates) > 1:
        raise InputError(f"The study has {len(found)} series, choose one by its number with --series: {listed}.")
    return candidates[0]
