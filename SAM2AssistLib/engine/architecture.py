"""SAM2 networks, built from the classes of the ``sam2`` package by size.

The published SAM 2.1 sizes are written down here as values, not read from the package's YAML files, so that one
function builds every member of the family: the four published ones, MedSAM2 (the tiny one at 512 pixels) and ``mini``,
a SAM2 small enough to be shipped and to run on a laptop's CPU.

Sources: the ``sam2`` package's configurations for SAM 2.1 (Ravi et al. 2024, "SAM 2: Segment Anything in Images and
Videos").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from SAM2AssistLib.errors import ModelError

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True)
class Architecture:
    """The sizes that tell one SAM2 from another.

    Attributes
    ----------
    embed_dim, num_heads, stages, global_blocks, window_spec, background_size
        Of the Hiera image encoder. ``background_size`` is the side of its coarse position embedding in tokens.
    model_dim
        Channels of the neck, the memory attention and the mask decoder.
    memory_layers, memory_dim, memory_feedforward, memory_dropout
        Of the memory attention; ``memory_dim`` is the channels of one stored memory. Dropout works in training only.
    several_masks
        Whether one ambiguous click gives three candidate masks, of which the one with the best predicted IoU is kept.
    """

    embed_dim: int
    num_heads: int
    stages: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    window_spec: tuple[int, int, int, int] = (8, 4, 14, 7)
    background_size: tuple[int, int] = (7, 7)
    model_dim: int = 256
    memory_layers: int = 4
    memory_dim: int = 64
    memory_feedforward: int = 2048
    memory_dropout: float = 0.1
    several_masks: bool = True


ARCHITECTURES: dict[str, Architecture] = {
    # Windows of 8 tokens divide the 16 x 16 and 8 x 8 grids that a 256-pixel input gives; 14 and 7 would be padded to
    # twice the work.
    "mini": Architecture(
        embed_dim=32,
        num_heads=1,
        stages=(1, 2, 4, 1),
        global_blocks=(5, 6),
        window_spec=(8, 4, 8, 8),
        background_size=(8, 8),
        model_dim=128,
        memory_layers=2,
        memory_dim=32,
        memory_feedforward=512,
        memory_dropout=0.0,
        several_masks=False,
    ),
    "hiera_t": Architecture(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "hiera_s": Architecture(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "hiera_b+": Architecture(112, 2, (2, 3, 16, 3), (12, 16, 20), background_size=(14, 14)),
    "hiera_l": Architecture(144, 2, (2, 6, 36, 4), (23, 33, 43), window_spec=(8, 4, 16, 8)),
}


def _image_encoder(arch: Architecture) -> Any:
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    channels = [arch.embed_dim * 2**stage for stage in (3, 2, 1, 0)]
    trunk = Hiera(
        embed_dim=arch.embed_dim,
        num_heads=arch.num_heads,
        stages=arch.stages,
        global_att_blocks=arch.global_blocks,
        window_spec=arch.window_spec,
        window_pos_embed_bkg_spatial_size=arch.background_size,
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(arch.model_dim, normalize=True, scale=None, temperature=10000),
        d_model=arch.model_dim,
        backbone_channel_list=channels,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=1)


def _memory_attention(arch: Architecture, grid: int) -> Any:
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.sam.transformer import RoPEAttention

    shared = {
        "rope_theta": 10000.0,
        "feat_sizes": (grid, grid),
        "embedding_dim": arch.model_dim,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": arch.memory_dropout,
    }
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=arch.memory_feedforward,
        dropout=arch.memory_dropout,
        pos_enc_at_attn=False,
        self_attention=RoPEAttention(**shared),
        d_model=arch.model_dim,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=RoPEAttention(rope_k_repeat=True, kv_in_dim=arch.memory_dim, **shared),
    )
    return MemoryAttention(d_model=arch.model_dim, pos_enc_at_input=True, layer=layer, num_layers=arch.memory_layers)


def _memory_encoder(arch: Architecture) -> Any:
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    block = CXBlock(dim=arch.model_dim, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True)
    return MemoryEncoder(
        in_dim=arch.model_dim,
        out_dim=arch.memory_dim,
        position_encoding=PositionEmbeddingSine(arch.memory_dim, normalize=True, scale=None, temperature=10000),
        mask_downsampler=MaskDownSampler(embed_dim=arch.model_dim, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(layer=block, num_layers=2),
    )


def build_sam2(architecture: str, image_size: int, *, model_class: type | None = None, **overrides: Any) -> SAM2Base:
    """Build an untrained SAM2 in evaluation mode on the CPU.

    Parameters
    ----------
    architecture
        A key of `ARCHITECTURES`.
    image_size
        Side of the square input in pixels, a multiple of 32.
    model_class
        ``sam2.modeling.sam2_base.SAM2Base`` if not given; the parity tests and the benchmarks give
        ``sam2.sam2_video_predictor.SAM2VideoPredictor``, which has the same parameters.
    overrides
        Further keyword arguments of that class.

    Raises
    ------
    ModelError
        If the architecture is unknown or the size does not divide.
    """
    from sam2.modeling.sam2_base import SAM2Base

    if architecture not in ARCHITECTURES:
        raise ModelError(f"There is no architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}.")
    if image_size < 64 or image_size % 32:
        raise ModelError(f"The input size {image_size} does not fit SAM2; use a multiple of 32 from 64 on.")
    arch = ARCHITECTURES[architecture]
    settings: dict[str, Any] = {
        "num_maskmem": 7,
        "image_size": image_size,
        "sigmoid_scale_for_mem_enc": 20.0,
        "sigmoid_bias_for_mem_enc": -10.0,
        "binarize_mask_from_pts_for_mem_enc": True,
        "use_mask_input_as_output_without_sam": True,
        "directly_add_no_mem_embed": True,
        "no_obj_embed_spatial": True,
        "use_high_res_features_in_sam": True,
        "multimask_output_in_sam": arch.several_masks,
        "iou_prediction_use_sigmoid": True,
        "use_obj_ptrs_in_encoder": True,
        "add_tpos_enc_to_obj_ptrs": True,
        "proj_tpos_enc_in_obj_ptrs": True,
        "use_signed_tpos_enc_to_obj_ptrs": True,
        "only_obj_ptrs_in_the_past_for_eval": True,
        "pred_obj_scores": True,
        "pred_obj_scores_mlp": True,
        "fixed_no_obj_ptr": True,
        "multimask_output_for_tracking": arch.several_masks,
        "use_multimask_token_for_obj_ptr": arch.several_masks,
        "multimask_min_pt_num": 0,
        "multimask_max_pt_num": 1,
        "use_mlp_for_obj_ptr_proj": True,
        # Where the single-mask token is unstable, the best of the three candidates is taken; mini has none.
        "sam_mask_decoder_extra_args": {
            "dynamic_multimask_via_stability": arch.several_masks,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    }
    settings.update(overrides)
    model = (model_class or SAM2Base)(
        image_encoder=_image_encoder(arch),
        memory_attention=_memory_attention(arch, image_size // 16),
        memory_encoder=_memory_encoder(arch),
        **settings,
    )
    return model.eval()
