"""LLaVA-Video."""

from lmms_flexselect.families.spec import FamilySpec, ModelName, PublishedModel

# 512 frames of 210 tokens, of which 32 frames' worth are kept; upstream would read 20 frames, pooled to 182. These
# entries tell LLaVA-Video from LLaVA-OneVision, whose decoders are the same.
_POOLED = {"mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2}
_HERE = "lmms_flexselect.families.llava_video"

SPEC = FamilySpec(
    name="llava_vid",
    title="LLaVA-Video",
    models=(
        ModelName("llava_vid_flexselect", simple="lmms_flexselect.families.llava_video.lmms_eval:LlavaVidFlexSelect"),
    ),
    frames_option="max_frames_num",
    # The one chat template that fits; upstream's default is Vicuna's.
    defaults={"token_budget": 32 * 210, "conv_template": "qwen_1_5"},
    published=(
        PublishedModel("LLaVA-Video-7B", "LLaVA-Video-7B-Qwen2", 3584, 28, _POOLED),
        PublishedModel("LLaVA-Video-72B", "LLaVA-Video-72B-Qwen2", 8192, 80, _POOLED),
    ),
    published_arguments={"max_frames_num": 512, **_POOLED},
    reference_layers={28: 19, 80: 60},
    relative_depth=19 / 28,
    upstream_device_map="cuda:0",
    tokens_behind_row=1,  # the newline
    reader=f"{_HERE}.reader:LlavaVideoReader",
    selector_network=f"{_HERE}.lite:SelectorNetwork",
    shape=f"{_HERE}.shape:shape",
    needle=f"{_HERE}.needle:NeedleLlavaVideo",
)
