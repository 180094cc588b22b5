"""Square views of a slice: what the network sees of it.

SAM2 sees a square of fixed size. A view says which rectangle of a slice is resampled to that square: the whole slice,
or, for a small object, a focus crop around it. Everything between slice pixels and network pixels goes through here.

Positions are (row, column) in pixels of the slice, 0 at the centre of the first pixel; edges lie at -0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name


@dataclass(frozen=True)
class View:
    """A rectangle of pixels of every slice along one axis; it may reach beyond the slice.

    Attributes
    ----------
    row, column : of its first pixel.
    rows, columns : its size in pixels.
    """

    row: int
    column: int
    rows: int
    columns: int

    def to_input(self, rows_columns: np.ndarray, image_size: int) -> np.ndarray:
        """Turn slice positions into network positions.

        Parameters
        ----------
        rows_columns : (n, 2) as (row, column).
        image_size : side S of the network's input.

        Returns
        -------
        (n, 2) float32 as (x, y) in network pixels, as SAM2's prompt encoder takes them.
        """
        y = (rows_columns[:, 0] + 0.5 - self.row) * image_size / self.rows - 0.5
        x = (rows_columns[:, 1] + 0.5 - self.column) * image_size / self.columns - 0.5
        return np.stack([x, y], axis=1).astype(np.float32)


def whole_slice(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> View:
    """See the whole slice, padded to a physical square so that nothing is squeezed.

    Parameters
    ----------
    shape : (rows, columns) of the slice.
    spacing_mm : (row, column) spacing.
    """
    side_mm = max(shape[0] * spacing_mm[0], shape[1] * spacing_mm[1])
    centre = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    return square_around(centre, side_mm, spacing_mm)


def stretched_slice(shape: tuple[int, int]) -> View:
    """See the whole slice stretched to the network's square, as SAM2's own predictor does."""
    return View(0, 0, *shape)


def square_around(centre: tuple[float, float], side_mm: float, spacing_mm: tuple[float, float]) -> View:
    """See a physical square around a position (row, column)."""
    rows, columns = (max(1, round(side_mm / spacing)) for spacing in spacing_mm)
    return View(round(centre[0] - (rows - 1) / 2), round(centre[1] - (columns - 1) / 2), rows, columns)


def cut(hu: np.ndarray, view: View, image_size: int, fill: float) -> Tensor:
    """Resample a slice through a view.

    Parameters
    ----------
    hu : (rows, columns) of the slice.
    fill : HU of what lies beyond the slice.

    Returns
    -------
    (S, S) float32 HU, antialiased where it shrinks.
    """
    inside, offset = _overlap(hu.shape, view)
    patch = torch.full((view.rows, view.columns), fill, dtype=torch.float32)
    piece = torch.from_numpy(np.ascontiguousarray(hu[inside], dtype=np.float32))
    patch[offset[0] : offset[0] + piece.shape[0], offset[1] : offset[1] + piece.shape[1]] = piece
    size = (image_size, image_size)
    return F.interpolate(patch[None, None], size=size, mode="bilinear", align_corners=False, antialias=True)[0, 0]


def uncut(logits: Tensor, view: View, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Bring mask logits back to the pixels of the slice.

    Parameters
    ----------
    logits : (h, w) of the view, or (N, h, w) of many masks.
    shape : (rows, columns) of the slice.

    Returns
    -------
    The logits, (rows, columns) or (N, rows, columns), of the pixels that the view shares with the slice, and which
    pixels these are.
    """
    size = (view.rows, view.columns)
    planes = logits.float().view(1, -1, *logits.shape[-2:])
    full = F.interpolate(planes, size=size, mode="bilinear", align_corners=False).view(*logits.shape[:-2], *size)
    inside, offset = _overlap(shape, view)
    height, width = inside[0].stop - inside[0].start, inside[1].stop - inside[1].start
    return full[..., offset[0] : offset[0] + height, offset[1] : offset[1] + width].cpu().numpy(), inside


def move_logits(logits: Tensor, old: View, new: View, outside: float) -> Tensor:
    """Resample mask logits from one view to another.

    Parameters
    ----------
    logits : (h, w) in the old view.
    outside : logit of what the old view did not see.

    Returns
    -------
    (h, w) in the new view.
    """
    height, width = logits.shape
    rows = (torch.arange(height, dtype=torch.float32) + 0.5) * new.rows / height + new.row
    columns = (torch.arange(width, dtype=torch.float32) + 0.5) * new.columns / width + new.column
    y = (rows - old.row) * 2 / old.rows - 1
    x = (columns - old.column) * 2 / old.columns - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].to(logits.device)
    shifted = logits[None, None].float() - outside
    return F.grid_sample(shifted, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0, 0] + outside


def _overlap(shape: tuple[int, ...], view: View) -> tuple[tuple[slice, slice], tuple[int, int]]:
    row, row_end = max(0, view.row), min(shape[0], view.row + view.rows)
    column, column_end = max(0, view.column), min(shape[1], view.column + view.columns)
    inside = (slice(row, max(row, row_end)), slice(column, max(column, column_end)))
    return inside, (max(0, row - view.row), max(0, column - view.column))
