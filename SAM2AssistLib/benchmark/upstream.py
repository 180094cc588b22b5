"""SAM2's own ``SAM2VideoPredictor`` on the slices of a volume: the baseline.

It is used as it comes (sam2 1.1.0), with its default order of operations. Only the folder of JPEGs that its
``init_state`` wants is replaced by our slices, already windowed, resized and on the device, so that reading them is not
in its time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from SAM2AssistLib.benchmark.scene import Scene
from SAM2AssistLib.engine.appearance import Channels, to_channels
from SAM2AssistLib.engine.architecture import build_sam2
from SAM2AssistLib.engine.loading import Engine, default_window
from SAM2AssistLib.engine.views import cut, stretched_slice


def upstream_of(engine: Engine) -> Any:
    """Build a ``SAM2VideoPredictor`` with the weights of an engine, on its device."""
    from sam2 import sam2_video_predictor

    # Its progress bar has no switch, costs time on some terminals, and would write into our own output.
    sam2_video_predictor.tqdm = lambda frames, desc: frames
    spec = engine.spec
    predictor = build_sam2(
        spec.architecture,
        engine.model.image_size,
        model_class=sam2_video_predictor.SAM2VideoPredictor,
        add_all_frames_to_correct_as_cond=True,
        max_cond_frames_in_attn=engine.model.max_cond_frames_in_attn,
    )
    predictor.load_state_dict(engine.model.state_dict())
    return predictor.to(engine.model.device).eval()


class Upstream:
    """A predictor at work on a scene.

    Parameters
    ----------
    predictor : of `upstream_of`.
    scene : to segment.
    channels : how the model wants its three input channels.
    """

    def __init__(self, predictor: Any, scene: Scene, channels: Channels) -> None:
        self.predictor, self.scene = predictor, scene
        self.images = _images(scene, predictor.image_size, channels).to(predictor.device)
        # A state for each direction: so neither sees the memories of the other, as in our lanes.
        self.up, self.down = self._state(), self._state()

    def _state(self) -> dict[str, Any]:
        rows, columns = self.scene.volume.array.shape[1:]
        device = self.predictor.device
        state: dict[str, Any] = {
            "images": self.images,
            "num_frames": len(self.images),
            "offload_video_to_cpu": False,
            "offload_state_to_cpu": False,
            "video_height": rows,
            "video_width": columns,
            "device": device,
            "storage_device": device,
            "cached_features": {},
            "constants": {},
            "obj_ids": [],
        }
        per_object = ("point_inputs_per_obj", "mask_inputs_per_obj", "output_dict_per_obj", "frames_tracked_per_obj")
        for name in (*per_object, "temp_output_dict_per_obj", "obj_id_to_idx", "obj_idx_to_id"):
            state[name] = {}
        return state

    def encode(self, indices: Sequence[int]) -> None:
        """Encode slices as the propagation does it: one at a time."""
        for index in indices:
            self.up["cached_features"] = {}
            with torch.inference_mode():
                self.predictor._get_image_feature(self.up, index, 1)

    def prompt(self) -> None:
        """Show all objects of the scene."""
        for state in (self.up, self.down):
            for number, mask in enumerate(self.scene.masks):
                self.predictor.add_new_mask(state, self.scene.index, number, mask)

    def click(self, number: int, xy: np.ndarray) -> np.ndarray:
        """Click into an object on the prompted slice; its mask (rows, columns) bool there."""
        _, numbers, logits = self.predictor.add_new_points_or_box(
            self.up,
            self.scene.index,
            number,
            points=np.asarray(xy, np.float32)[None],
            labels=np.ones(1, np.int32),
            clear_old_points=True,
        )
        return (logits[numbers.index(number), 0] > 0).cpu().numpy()

    def propagate(self, masks: np.ndarray) -> Iterator[float]:
        """Track all objects up and down; yields the share that is done.

        Parameters
        ----------
        masks : (objects, slices, rows, columns) bool, written to.
        """
        done, total = 0, len(self.images) + 1
        for state, reverse in ((self.up, False), (self.down, True)):
            for index, _, logits in self.predictor.propagate_in_video(state, reverse=reverse):
                masks[:, index] = (logits[:, 0] > 0).cpu().numpy()
                done += 1
                yield done / total


def _images(scene: Scene, size: int, channels: Channels) -> Tensor:
    window, view = default_window(scene.volume), stretched_slice(scene.volume.array.shape[1:])
    slices = [cut(hu, view, size, float(scene.volume.array.min())) for hu in scene.volume.array]
    return to_channels(torch.stack(slices), window.level, window.width, channels)
