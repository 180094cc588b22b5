"""How the engine works where there is a choice; the defaults are what a user wants."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineOptions:
    """Choices of a session.

    Attributes
    ----------
    focus : small objects are seen through a crop around them.
    stop_rules : a propagation ends where the object ends.
    fading : logits that a carried mask loses over a distance of its own width, beyond the outermost prompts. What the
        image renews stays; what is merely copied on fades. 0 for none.
    both_directions : up and down the volume, and all segments, go through the network together. Otherwise one
        direction and one segment follows the other, and the second direction sees the memories of the first, as in
        SAM2's own predictor.
    meet_between : between two prompted slices, masks come from both and are fused. Otherwise from the lower one only.
    only_changed : after a correction only the slices between the neighbouring prompted slices are propagated again.
    refines : the model's refiner, if it has one, pulls every mask to the edges of the image.
    sharpens : masks settle on the edges of the image after a prompt and after a propagation, see `sharpening`.
    whole_voxels : a box reaches to the far edges of its outermost voxels, not to their centres.
    drawn_prompts, carried_logits : None follows the model's catalogue entry; False does without.
    stretch : the whole slice is stretched to the network's square instead of padded.
    prompts_decide : on a slice with a positive prompt the object is present, whatever its object score says.
    corrects_locally : a click on a slice that is shown already changes it around the click, see `local_corrections`.
        Otherwise the network decodes the whole slice again.
    half : on a CPU with AMX, not most but all is computed in bfloat16. None follows the model's catalogue entry.
    exact : on a CPU, nothing is computed in bfloat16, whatever the model bears.
    cache_bytes, cache_slices : of slice features, what is reached first; the bytes on a device for all open volumes
        together, the slices for each axis in use.
    encode_batch : slices encoded at once.
    row_batch : objects times directions decoded at once.
    """

    focus: bool = True
    stop_rules: bool = True
    fading: float = 0.4
    both_directions: bool = True
    meet_between: bool = True
    only_changed: bool = True
    refines: bool = True
    sharpens: bool = True
    whole_voxels: bool = True
    drawn_prompts: bool | None = None
    carried_logits: bool | None = None
    stretch: bool = False
    prompts_decide: bool = True
    corrects_locally: bool = True
    half: bool | None = None
    exact: bool = False
    cache_bytes: int = 2 << 30
    cache_slices: int = 256
    encode_batch: int = 4
    row_batch: int = 32

    @classmethod
    def like_upstream(cls, *, both_directions: bool = False) -> EngineOptions:
        """Return the choices under which the masks equal those of ``SAM2VideoPredictor``."""
        return cls(
            focus=False,
            stop_rules=False,
            fading=0.0,
            both_directions=both_directions,
            meet_between=False,
            only_changed=False,
            refines=False,
            sharpens=False,
            whole_voxels=False,
            drawn_prompts=False,
            carried_logits=False,
            stretch=True,
            prompts_decide=False,
            corrects_locally=False,
            exact=True,
        )
