"""The peer that matters most: SAM2's own video predictor with the same weights, driven as its own examples do.

Slices are stretched to its square and windowed as the weights expect it. Prompts go in at their slice, then masks are
propagated up to the last slice and down to the first, after every click again from the start, because that is what it
offers. What lies beyond the range of slices that the user gave is cleared, as it is known. To keep waiting short, the
features of all slices are computed once and put into its own cache where they fit; this does not change a mask.

Weights that were trained with drawn prompts (see `SAM2AssistLib.prompting.dense`) say next to nothing to tokens alone.
For these the predictor gets the same drawings: prompts on prompted slices, and the neighbour's mask on the others.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from SAM2AssistLib.engine.appearance import to_channels
from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.loading import CONDITIONING_LIMIT, default_window
from SAM2AssistLib.engine.views import cut, stretched_slice
from SAM2AssistLib.evaluation.methods import Attempt, Opened
from SAM2AssistLib.evaluation.simulated_user import Prompt, RangedBox
from SAM2AssistLib.prompting.dense import draw_prompts

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine
    from SAM2AssistLib.volume import CTVolume

CACHE_BYTES = 3 << 30
"""Of features of all slices together; a volume with more is encoded anew in every propagation."""

_PER_OBJECT = (
    "point_inputs_per_obj", "mask_inputs_per_obj", "obj_id_to_idx", "obj_idx_to_id", "output_dict_per_obj",
    "temp_output_dict_per_obj", "frames_tracked_per_obj",
)  # fmt: skip


def _predictor_class(*, drawing: bool, carrying: bool) -> type:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    if not drawing:
        return SAM2VideoPredictor

    class DrawingPredictor(SAM2VideoPredictor):
        """The video predictor, with the mask prompts that the weights were trained with."""

        carried: torch.Tensor | None = None

        def track_step(self, **given: Any) -> dict[str, Any]:
            near = given["frame_idx"] + (1 if given["track_in_reverse"] else -1)
            held = given["output_dict"]
            before = held["cond_frame_outputs"].get(near) or held["non_cond_frame_outputs"].get(near)
            is_prompted = given["point_inputs"] is not None or given["mask_inputs"] is not None
            self.carried = None if is_prompted or before is None or not carrying else before["pred_masks"]
            return super().track_step(**given)

        def _forward_sam_heads(
            self,
            backbone_features: torch.Tensor,
            point_inputs: dict[str, torch.Tensor] | None = None,
            mask_inputs: torch.Tensor | None = None,
            high_res_features: list[torch.Tensor] | None = None,
            multimask_output: bool = False,
        ) -> tuple[Any, ...]:
            if point_inputs is not None:
                xy, kinds = point_inputs["point_coords"], point_inputs["point_labels"]
                mask_inputs = draw_prompts(self.image_size, xy, kinds, mask_inputs)
            elif mask_inputs is None and self.carried is not None:
                mask_inputs = draw_prompts(self.image_size, None, None, self.carried.to(backbone_features.device))
            return super()._forward_sam_heads(
                backbone_features, point_inputs, mask_inputs, high_res_features, multimask_output
            )

    return DrawingPredictor


class UpstreamMethod:
    """SAM2's video predictor with the weights of an engine (an adapter merged into it included).

    Parameters
    ----------
    engine : whose weights it gets.
    """

    name = "SAM2 video predictor"

    def __init__(self, engine: Engine) -> None:
        self.channels = engine.channels
        self.predictor = build_sam2(
            engine.spec.architecture,
            engine.model.image_size,
            model_class=_predictor_class(drawing=engine.spec.dense_prompts, carrying=engine.spec.carries_logits),
            add_all_frames_to_correct_as_cond=True,
            max_cond_frames_in_attn=CONDITIONING_LIMIT,
        )
        self.predictor.load_state_dict(engine.model.state_dict())
        self.predictor.to(engine.model.device).eval()

    @contextmanager
    def open(self, volume: CTVolume) -> Iterator[Opened]:
        """Prepare the slices, and their features where they fit."""
        yield _OpenedUpstream(self, volume)


class _OpenedUpstream:
    def __init__(self, method: UpstreamMethod, volume: CTVolume) -> None:
        self.method, self.volume = method, volume
        self.images = self._images()
        self.features: dict[int, Any] = {}

    def _images(self) -> torch.Tensor:
        window, size = default_window(self.volume), self.method.predictor.image_size
        view = stretched_slice(self.volume.shape_kji[1:])
        slices = torch.stack([cut(section, view, size, 0.0) for section in self.volume.array])
        return to_channels(slices, window.level, window.width, self.method.channels)

    def state(self) -> dict[str, Any]:
        """Return what ``init_state`` makes of a folder of pictures, made of the slices instead."""
        device = self.method.predictor.device
        _, rows, columns = self.volume.shape_kji
        state: dict[str, Any] = {name: {} for name in _PER_OBJECT}
        state |= {
            "images": self.images,
            "num_frames": len(self.images),
            "offload_video_to_cpu": True,
            "offload_state_to_cpu": False,
            "video_height": rows,
            "video_width": columns,
            "device": device,
            "storage_device": device,
            "cached_features": self._cached(device),
            "constants": {},
            "obj_ids": [],
        }
        return state

    @torch.inference_mode()
    def _cached(self, device: torch.device) -> dict[int, Any]:
        if not self.features:
            for k in range(len(self.images)):
                image = self.images[k].to(device).float().unsqueeze(0)
                self.features[k] = (image, self.method.predictor.forward_image(image))
                if k == 0 and _bytes_of(self.features[0]) * len(self.images) > CACHE_BYTES:
                    self.features = {}
                    return {}
        return dict(self.features)

    @contextmanager
    def attempt(self, name: str) -> Iterator[Attempt]:
        """Begin with a fresh state."""
        yield _UpstreamAttempt(self)


class _UpstreamAttempt:
    def __init__(self, opened: _OpenedUpstream) -> None:
        self.opened, self.state = opened, opened.state()
        self.reach: tuple[int, int] | None = None

    def prompt(self, prompt: Prompt) -> NDArray[np.bool_]:
        predictor = self.opened.method.predictor
        if isinstance(prompt, RangedBox):
            (x0, y0, k), (x1, y1, _) = prompt.box.min_ijk, prompt.box.max_ijk
            self.reach = prompt.reach
            box = np.array([x0, y0, x1, y1], np.float32)
            _, _, logits = predictor.add_new_points_or_box(self.state, round(k), 1, box=box)
        else:
            x, y, k = prompt.index_ijk
            points = np.array([[x, y]], np.float32)
            labels = np.array([int(prompt.positive)], np.int32)
            _, _, logits = predictor.add_new_points_or_box(
                self.state, round(k), 1, points=points, labels=labels, clear_old_points=False
            )
        return logits[0, 0].cpu().numpy() > 0

    def mask(self) -> NDArray[np.bool_]:
        predictor = self.opened.method.predictor
        mask = np.zeros(self.opened.volume.shape_kji, bool)
        with redirect_stderr(io.StringIO()):  # its progress bar has no switch
            for reverse in (False, True):
                for index, _, logits in predictor.propagate_in_video(self.state, reverse=reverse):
                    mask[index] = logits[0, 0].cpu().numpy() > 0
        if self.reach is not None:
            mask[: self.reach[0]] = mask[self.reach[1] + 1 :] = False
        return mask


def _bytes_of(content: Any) -> int:
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, dict):
        content = list(content.values())
    return sum(_bytes_of(item) for item in content)
