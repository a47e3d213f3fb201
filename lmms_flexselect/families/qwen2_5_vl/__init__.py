"""Qwen2.5-VL."""

from lmms_flexselect.families.spec import FamilySpec, ModelName, PublishedModel

# Paper, implementation details: at most 1024 frames at 2 fps and a 7,040-token budget. At 308 x 560 pixels a 16:9
# frame pair costs 209 tokens. The lower bound is qwen-vl-utils' own for video (upstream's exceeds the upper one).
_PAPER = {
    "token_budget": 7040,
    "max_num_frames": 1024,
    "fps": 2.0,
    "max_pixels": 308 * 560,
    "min_pixels": 128 * 28 * 28,
}
_HERE = "lmms_flexselect.families.qwen2_5_vl"

SPEC = FamilySpec(
    name="qwen2_5_vl",
    title="Qwen2.5-VL",
    models=(
        ModelName(
            "qwen2_5_vl_flexselect",
            chat=f"{_HERE}.lmms_eval:Qwen2_5_VLFlexSelect",
            simple=f"{_HERE}.lmms_eval:Qwen2_5_VLFlexSelectSimple",
        ),
    ),
    frames_option="max_num_frames",
    frames_per_unit=2,
    published=(
        PublishedModel("Qwen2.5-VL-3B", "Qwen2.5-VL-3B-Instruct", 2048, 36),
        PublishedModel("Qwen2.5-VL-7B", "Qwen2.5-VL-7B-Instruct", 3584, 28),
        PublishedModel("Qwen2.5-VL-32B", "Qwen2.5-VL-32B-Instruct", 5120, 64),
        PublishedModel("Qwen2.5-VL-72B", "Qwen2.5-VL-72B-Instruct", 8192, 80),
    ),
    published_arguments=_PAPER,
    reference_layers={28: 20, 80: 60},
    relative_depth=20 / 28,
    options=f"{_HERE}.options:Options",
    reader=f"{_HERE}.reader:Qwen2_5_VLReader",
    selector_network=f"{_HERE}.lite:SelectorNetwork",
    shape=f"{_HERE}.shape:shape",
    needle=f"{_HERE}.needle:NeedleQwen2_5_VL",
)
