"""Where the masks of organs come from that a protocol scores: files, one box for each organ, or Auto-Segment."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.cases import Case, ReadCase, listed
from SAM2AssistLib.evaluation.simulated_user import box_on_middle_slice
from SAM2AssistLib.io.atomic import ending_of
from SAM2AssistLib.io.label_map import LABEL_MAP_ENDINGS, SHARED_NAMES, names_file_of, own_names_path_of, read_names
from SAM2AssistLib.io.named_mask import NamedMask
from SAM2AssistLib.io.segmentation import masks_on_grid_of, read_segmentation
from SAM2AssistLib.prompting.support import masks_by_name

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine
    from SAM2AssistLib.prompting.self_prompt import SelfPrompter
    from SAM2AssistLib.prompting.support import SupportCase
    from SAM2AssistLib.volume import CTVolume

Masks = dict[str, NDArray[np.bool_]]

ENDINGS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha", ".dcm")


class Source(Protocol):
    """Something that segments the organs of a case.

    Attributes
    ----------
    name : in reports.
    told : what it was told besides the image, for the report; "" for nothing.
    """

    name: str
    told: str

    def segment(self, case: ReadCase, organs: Sequence[str], draw: int) -> Masks:
        """Segment a case; organs that were not found may be left out.

        Parameters
        ----------
        draw : number of the repetition, for what is random.
        """

    def classes(self) -> Collection[str] | None:
        """What it can segment; None if that is for the data to say."""

    def files(self, case: str) -> Sequence[Path]:
        """What it reads of a case beside image and reference."""
        return ()

    def supports(self, case: str, draws: int) -> Sequence[Case]:
        """The other cases that it goes by in any of so many repetitions."""
        return ()


class FromFiles(Source):
    """Results of any program, one file for each case.

    Parameters
    ----------
    folder : with ``CASE.nii.gz``, ``CASE.seg.nrrd`` or the like, names of label maps in ``labels.json``.
    """

    name, told = "files", ""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"There is no folder of results '{folder}'; check the path after --predictions.")
        self.folder = folder

    def classes(self) -> None:
        """Whatever the data name."""

    def files(self, case: str) -> Sequence[Path]:
        """The file of a case, and the one that its names are in, if there is one."""
        path = self._file(case)
        names = names_file_of(path)
        return (path,) if names is None else (path, names)

    def _file(self, case: str) -> Path:
        path = next((p for e in ENDINGS if (p := self.folder / (case + e)).is_file()), None)
        if path is None:
            raise InputError(f"{self.folder} has no result for the case {case}; put {case}.nii.gz there.")
        return path

    def segment(self, case: ReadCase, organs: Sequence[str], draw: int) -> Masks:
        """Read the file of a case."""
        path = self._file(case.name)
        found, ijk_to_lps = read_segmentation(path, case.volume)
        if found:
            _check_names(path, found, case)
            _check_place(path, found[0].mask.shape, ijk_to_lps, case.volume)
        return masks_by_name(masks_on_grid_of(case.volume, found, ijk_to_lps))


def _check_names(path: Path, found: Sequence[NamedMask], case: ReadCase) -> None:
    """Refuse a label map whose names are missing or others, of which every organ would count as missed.

    A file of its own names what was found in this case alone, and that may be nothing that the data name.
    """
    file = names_file_of(path)
    if ending_of(path) not in (*LABEL_MAP_ENDINGS, ".nii") or file == own_names_path_of(path):
        return
    names = [segment.name for segment in found] if file is None else list(read_names(file).values())
    if not set(names) & set(case.names):
        raise InputError(
            f"{path} holds {listed(names, 3)}, but the data name {listed(case.names, 3)}; write what its values "
            f"mean to {path.parent / SHARED_NAMES}."
        )


def _check_place(path: Path, shape_kji: tuple[int, ...], ijk_to_lps: NDArray[np.float64], volume: CTVolume) -> None:
    """Refuse a result as large as its image that lies elsewhere: some programs lose the geometry."""
    if shape_kji != volume.shape_kji:
        return
    ends = [[i, j, k, 1.0] for k in (0, shape_kji[0] - 1) for j in (0, shape_kji[1] - 1) for i in (0, shape_kji[2] - 1)]
    own, others = (np.array(ends) @ matrix.T for matrix in (volume.ijk_to_lps, ijk_to_lps))
    # Corners in any order, because some programs turn axes around, voxels and geometry alike.
    apart = float(np.linalg.norm(own[:, None] - others[None], axis=2).min(1).max())
    if apart > max(volume.spacing_ijk):
        raise InputError(
            f"{path} has as many voxels as its image {volume.source} but lies {apart:.0f} mm off; write results with "
            "the geometry of the image."
        )


class FromBoxes(Source):
    """The engine, told where each organ is by a box on its middle slice: what prompts alone can reach.

    Parameters
    ----------
    engine : from `load_engine`.
    """

    name = "SAM2Assist, one box for each organ"
    told = (
        "A box on the middle slice of each organ that is there. Who is told where the organs are, and which are there, "
        "cannot be compared with who is not."
    )

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def classes(self) -> None:
        """Whatever the data name."""

    def segment(self, case: ReadCase, organs: Sequence[str], draw: int) -> Masks:
        """Box what is there and propagate all of it together."""
        with self.engine.open(case.volume) as session:
            handles = {}
            for organ in organs:
                reference = case.reference(organ)
                if reference.any():
                    handles[organ] = session.add_segment(organ)
                    session.place_box(handles[organ], box_on_middle_slice(reference))
            for _ in session.propagate():
                pass
            return {organ: session.mask(handle) for organ, handle in handles.items()}


@dataclass(frozen=True)
class SupportDraws:
    """Support cases drawn at random, the same in a draw for all cases that are segmented.

    Attributes
    ----------
    pool : to draw from; a case is never its own support.
    count : of support cases in a draw.
    """

    pool: tuple[Case, ...]
    count: int

    def drawn(self, query: str, draw: int) -> list[Case]:
        """Draw for a case.

        Raises
        ------
        InputError
            If the pool is too small.
        """
        order = np.random.default_rng(draw).permutation(len(self.pool))
        others = [self.pool[n] for n in order if self.pool[n].name != query]
        if len(others) < self.count:
            raise InputError(
                f"There are {len(others)} cases to support {query} and {self.count} are wanted; name a larger part "
                "with --support-part."
            )
        return others[: self.count]


class AutoSegment(Source):
    """The engine without prompts: with a self-prompt head, or with support cases.

    Parameters
    ----------
    engine : with the head's adapter, if there is one.
    prompter : the head; with support cases it need not be there.
    draws : of support cases.
    """

    def __init__(self, engine: Engine, prompter: SelfPrompter | None, draws: SupportDraws | None) -> None:
        self.engine, self.prompter, self.draws = engine, prompter, draws
        self.name = "SAM2Assist, Auto-Segment"
        count = 0 if draws is None else draws.count
        self.told = f"{count} support case{'s' if count > 1 else ''} in each draw." if count else ""

    def classes(self) -> Collection[str] | None:
        """What the head is good enough at; with support cases, whatever the data name."""
        return None if self.prompter is None or self.draws is not None else self.prompter.classes

    def supports(self, case: str, draws: int) -> Sequence[Case]:
        """All that are drawn for a case, each once."""
        if self.draws is None:
            return ()
        drawn = [one for draw in range(draws) for one in self.draws.drawn(case, draw)]
        return list({one.name: one for one in drawn}.values())

    def segment(self, case: ReadCase, organs: Sequence[str], draw: int) -> Masks:
        """Segment what the head or the support cases know of the organs."""
        from SAM2AssistLib.prompting.auto import auto_segment

        support = [] if self.draws is None else self._support(case.name, organs, draw)
        taught = set(self.classes() or ())
        if self.draws is not None:  # a head then helps to compare; what only it knows is not found by support cases
            taught = {name for one in support for name in one.masks}
        wanted = [organ for organ in organs if organ in taught]
        if not wanted:
            return {}
        with self.engine.open(case.volume) as session:
            for _ in auto_segment(session, adapter=self.prompter, support=support, classes=wanted):
                pass
            return {segment.name: session.mask(segment) for segment in session.segments}

    def _support(self, query: str, organs: Sequence[str], draw: int) -> list[SupportCase]:
        from SAM2AssistLib.prompting.support import SupportCase

        assert self.draws is not None
        found = []
        for case in self.draws.drawn(query, draw):
            held = case.read()
            masks = {organ: mask for organ in organs if (mask := held.reference(organ)).any()}
            if masks:
                found.append(SupportCase(case.name, held.volume, masks))
        return found
