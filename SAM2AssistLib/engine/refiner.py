"""The edge refiner: a few convolutions that pull a mask to the edges of the image.

SAM2's decoder paints a mask from tokens of 16 pixels; how fine it becomes depends on how well its last two layers have
learned to use the finer features. In a small network trained for hours they have not: masks come out in blocks. Plain
convolutions over the image itself learn edges at once. This is the second of two decoding stages that H-SAM and PRISM's
refinement network have, made small: 60 thousand parameters beside the 4.2 million of ``mini``.

SAM2 itself stays as it is. The refiner stands beside it, its weights in the same file under ``refiner.``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's usual name

PREFIX = "refiner."
EDGE_CHANNELS, WIDTH = 16, 24
DILATIONS = (1, 2, 4, 8, 4, 2, 1)
LOGIT_LIMIT = 10.0
LOGIT_SCALE = 5.0


class EdgeRefiner(nn.Module):
    """Refines mask logits by the image, its prompts and nothing else.

    It is fully convolutional and takes any size. Untrained it changes nothing: its last layer begins at zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(3, EDGE_CHANNELS, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(EDGE_CHANNELS, EDGE_CHANNELS, 3, stride=2, padding=1),
            nn.GELU(),
        )
        self.join = nn.Conv2d(EDGE_CHANNELS + 2, WIDTH, 3, padding=1)
        self.spread = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=d, dilation=d) for d in DILATIONS)
        self.change = nn.Conv2d(WIDTH, 1, 1)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)  # type: ignore[arg-type]

    def edges(self, images: Tensor) -> Tensor:
        """Look at slices, once for all segments and prompts.

        Parameters
        ----------
        images : (B, 3, S, S), normalised as SAM2 takes them.

        Returns
        -------
        (B, E, S/4, S/4).
        """
        return self.look(F.avg_pool2d(images, 2))

    def forward(self, logits: Tensor, dense: Tensor | None, edges: Tensor) -> Tensor:
        """Refine masks.

        Parameters
        ----------
        logits : (N, 1, S/4, S/4) of the mask decoder.
        dense : (N, 1, S/4, S/4) the mask prompt that it was given, or None.
        edges : (N, E, S/4, S/4) of each mask's slice.

        Returns
        -------
        (N, 1, S/4, S/4) logits.
        """
        given = torch.zeros_like(logits) if dense is None else dense
        maps = [m.float().clamp(-LOGIT_LIMIT, LOGIT_LIMIT) / LOGIT_SCALE for m in (logits, given)]
        x = F.gelu(self.join(torch.cat([edges, *(m.to(edges.dtype) for m in maps)], dim=1)))
        for layer in self.spread:
            x = x + F.gelu(layer(x))
        return logits + LOGIT_SCALE * self.change(x).float()


def refiner_from(state: dict[str, Tensor]) -> EdgeRefiner | None:
    """Build the refiner whose weights a checkpoint holds, in evaluation mode; None if it holds none.

    Parameters
    ----------
    state : a checkpoint's tensors; the refiner's names begin with ``refiner.``.
    """
    own = {name.removeprefix(PREFIX): tensor.float() for name, tensor in state.items() if name.startswith(PREFIX)}
    if not own:
        return None
    refiner = EdgeRefiner()
    refiner.load_state_dict(own)
    return refiner.eval()
