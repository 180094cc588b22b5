"""Two opinions of a segment become one: what the network has made of its slices, and what somebody else thinks of them.

Both are log odds of the same question, so they are averaged as such (a product of experts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from SAM2AssistLib.engine.history import Recorder
from SAM2AssistLib.engine.memory import SliceState
from SAM2AssistLib.engine.plane import Plane
from SAM2AssistLib.engine.views import View

LIMIT = 6.0
"""Neither side may be surer than this, or it could not be outvoted where it is wrong."""


@dataclass(frozen=True, eq=False)
class SliceOpinion:
    """Log odds of a segment on one slice.

    Attributes
    ----------
    view : through which the slice was seen.
    logits : (h, w), within the view; outside of it nothing is claimed.
    """

    view: View
    logits: Tensor


def blend(plane: Plane, recorder: Recorder, opinions: Mapping[int, SliceOpinion], weight: float) -> None:
    """Blend opinions into the states and the mask of a segment; slices that a user has drawn stay as they are.

    Parameters
    ----------
    opinions : by slice. A slice that the network has not reached takes the opinion as it is.
    weight : of the opinions, from 0 to 1.
    """
    record = recorder.record
    findings = record.findings
    if not findings.states:
        return
    states = dict(findings.states)
    for index, opinion in opinions.items():
        if findings.is_drawn(index):
            continue
        reached = findings.states.get(index)
        if reached is None and not bool((opinion.logits > 0).any()):
            continue
        states[index] = _blended(plane, reached or _stand_in(findings.states, index), reached, opinion, weight)
        recorder.write(plane.axis, index, plane.tracker.mask_of(states[index]))
    record.findings = replace(findings, states=states)


def _stand_in(states: Mapping[int, SliceState], index: int) -> SliceState:
    """The nearest slice's state, of which the pointer counts."""
    nearest = min(states, key=lambda k: (abs(k - index), k))
    return replace(states[nearest], prompted=False)


def _blended(
    plane: Plane, like: SliceState, reached: SliceState | None, opinion: SliceOpinion, weight: float
) -> SliceState:
    """Average both in the finer of their views."""
    network = plane.network
    said = SliceState(opinion.view, opinion.logits, like.iou, like.object_score, like.pointer, None)
    if reached is None:
        view, logits = opinion.view, opinion.logits.float()
    else:
        view = reached.view
        own = network.carried(reached, view).clamp(-LIMIT, LIMIT)
        logits = (1 - weight) * own + weight * network.carried(said, view).clamp(-LIMIT, LIMIT)
        # What the network has seen through a crop only is known to the opinion alone.
        outside = view_lacks(opinion, view)
        if outside is not None:
            view = opinion.view
            seen = network.carried(replace(reached, logits=logits.half(), view=reached.view), view)
            logits = torch.where(outside.to(seen.device), opinion.logits.to(seen.device).float(), seen)
    present = bool((logits > 0).any())
    score = abs(like.object_score) if present else -abs(like.object_score)
    return replace(like, view=view, logits=logits.half(), object_score=score, memory=None, backed=True)


def view_lacks(opinion: SliceOpinion, view: View) -> Tensor | None:
    """Tell which cells of an opinion that claim the segment lie outside a view; None if there is no such cell."""
    height, width = opinion.logits.shape
    rows = (torch.arange(height) + 0.5) * opinion.view.rows / height + opinion.view.row
    columns = (torch.arange(width) + 0.5) * opinion.view.columns / width + opinion.view.column
    in_rows = (rows >= view.row) & (rows < view.row + view.rows)
    in_columns = (columns >= view.column) & (columns < view.column + view.columns)
    outside = ~(in_rows[:, None] & in_columns[None])
    return outside if bool((outside & (opinion.logits.cpu() > 0)).any()) else None
