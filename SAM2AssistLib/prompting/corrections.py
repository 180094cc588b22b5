"""Corrections that the engine makes itself, where it is least sure (PHPG at inference).

Each round looks at the least sure slice of a segment, asks where it is probably wrong, and clicks there as a user
would: in the middle of the largest such region. The click stays only if the engine is surer of the slices it changed
than before; that includes the agreement of the masks that come from both sides. What stays is an ordinary prompt,
listed and removed like a user's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from SAM2AssistLib.depth import deepest_in
from SAM2AssistLib.engine.doubt import DoubtfulSlice
from SAM2AssistLib.engine.segment import PlacedPrompt, Segment
from SAM2AssistLib.engine.session import Session
from SAM2AssistLib.prompting.error_head import ErrorHead

Opinion = Callable[[Segment, int], "NDArray[np.float32] | None"]
"""Gives the probability, (rows, columns), that each pixel of a slice belongs to a segment; None for no opinion."""


@dataclass(frozen=True)
class CorrectionOptions:
    """How the engine corrects itself.

    Attributes
    ----------
    seconds : for all rounds together.
    least_gain : by which the mean confidence of the changed slices has to rise.
    contradiction : difference of two probabilities from which on they contradict one another.
    least_mm2 : smallest region that is worth a click.
    """

    seconds: float = 60.0
    least_gain: float = 0.002
    contradiction: float = 0.5
    least_mm2: float = 40.0


@dataclass(frozen=True)
class Correction:
    """A round that has ended.

    Attributes
    ----------
    segment, axis, index : the slice that was looked at.
    accepted : whether the click stayed.
    gain : of mean confidence, whether it stayed or not.
    """

    segment: Segment
    axis: int
    index: int
    accepted: bool
    gain: float


def correct(
    session: Session,
    segments: Sequence[Segment],
    rounds: int,
    options: CorrectionOptions | None = None,
    opinion: Opinion | None = None,
) -> Iterator[Correction]:
    """Correct segments where the engine is least sure.

    Parameters
    ----------
    rounds : at most, accepted or not.
    opinion : what somebody else thinks of a slice, such as an error head or the maps that the prompts came from; the
        slices next to it, if not given.

    Yields
    ------
    Correction
        After each round; the segments are propagated by then.
    """
    options = options or CorrectionOptions()
    ends = time.monotonic() + options.seconds
    tried: set[tuple[int, int]] = set()
    done = 0
    while done < rounds and time.monotonic() < ends:
        chosen = _next(session, segments, tried, options, opinion)
        if chosen is None:
            return
        slice_, point, positive = chosen
        yield _try(session, slice_, point, positive, options)
        done += 1


def error_opinion(session: Session, head: ErrorHead) -> Opinion:
    """Take the opinion of an error head: where it expects an error, the opposite of the mask."""

    def opinion(segment: Segment, index: int) -> NDArray[np.float32] | None:
        own, error = session.probability(segment, index), session.predicted_error(segment, index, head)
        return None if own is None or error is None else own + error * (1 - 2 * own)

    return opinion


def _next(
    session: Session,
    segments: Sequence[Segment],
    tried: set[tuple[int, int]],
    options: CorrectionOptions,
    opinion: Opinion | None,
) -> tuple[DoubtfulSlice, tuple[int, int], bool] | None:
    """Find the least sure slice on which there is something to click at."""
    wanted = {segment.id for segment in segments}
    for slice_ in session.doubtful_slices():
        key = (slice_.segment.id, slice_.index)
        if slice_.segment.id in wanted and key not in tried:
            tried.add(key)
            other = None if opinion is None else opinion(slice_.segment, slice_.index)
            if other is None:
                other = _neighbours(session, slice_)
            click = _click(session, slice_, other, options)
            if click is not None:
                return slice_, *click
    return None


def _neighbours(session: Session, slice_: DoubtfulSlice) -> NDArray[np.float32]:
    found = [session.probability(slice_.segment, slice_.index + side) for side in (-1, 1)]
    known = [p for p in found if p is not None]
    own = session.probability(slice_.segment, slice_.index)
    assert own is not None
    return np.mean(known, axis=0, dtype=np.float32) if known else own


def _click(
    session: Session, slice_: DoubtfulSlice, other: NDArray[np.float32], options: CorrectionOptions
) -> tuple[tuple[int, int], bool] | None:
    """Click in the middle of the largest region where the mask and the other opinion contradict one another."""
    own = session.probability(slice_.segment, slice_.index)
    assert own is not None
    wrong = np.abs(own - other) >= options.contradiction
    components, count = ndimage.label(wrong)
    if not count:
        return None
    sizes = np.bincount(components.ravel())[1:]
    spacing = session.volume.slice_spacing(slice_.axis)
    if sizes.max() * spacing[0] * spacing[1] < options.least_mm2:
        return None
    row, column = deepest_in(components == 1 + int(sizes.argmax()), spacing)
    return (row, column), bool(other[row, column] > own[row, column])


def _try(
    session: Session, slice_: DoubtfulSlice, point: tuple[int, int], positive: bool, options: CorrectionOptions
) -> Correction:
    segment = slice_.segment
    before = session.confidence(segment)
    prompt = PlacedPrompt(session.new_prompt_id(), slice_.index, np.array([point], float), np.array([int(positive)]))
    with session.attempt() as attempt:
        session.place_template(segment, slice_.axis, [prompt])
        for _ in session.propagate([segment], sharpen=False):
            pass
        gain = _gain(before, session.confidence(segment))
        if gain >= options.least_gain:
            attempt.keep()
    return Correction(segment, slice_.axis, slice_.index, attempt.kept, gain)


def _gain(before: dict[int, float], after: dict[int, float]) -> float:
    """Rise of the mean confidence over the slices whose confidence has changed."""
    changed = [k for k in before.keys() | after.keys() if before.get(k) != after.get(k)]
    if not changed:
        return 0.0
    return float(np.mean([after.get(k, 0.0) - before.get(k, 0.0) for k in changed]))
