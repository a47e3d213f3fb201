"""Qwen3-VL, dense and with experts."""

from lmms_flexselect.families.spec import FamilySpec, ModelName, PublishedModel

# The paper did not run it. Frames and budget are those of Qwen2.5-VL, and so, in larger patches, are the tokens: a 16:9
# frame pair costs 209.
_LIKE_QWEN2_5_VL = {
    "token_budget": 7040,
    "max_num_frames": 1024,
    "fps": 2.0,
    "max_pixels": 352 * 608,
    "min_pixels": 128 * 32 * 32,
}
_HERE = "lmms_flexselect.families.qwen3_vl"
_SIZES = {
    "2B": (2048, 28),
    "4B": (2560, 36),
    "8B": (4096, 36),
    "32B": (5120, 64),
    "30B-A3B": (2048, 48),
    "235B-A22B": (4096, 94),
}

SPEC = FamilySpec(
    name="qwen3_vl",
    title="Qwen3-VL",
    models=(
        ModelName(
            "qwen3_vl_flexselect",
            chat=f"{_HERE}.lmms_eval:Qwen3VLFlexSelect",
            simple=f"{_HERE}.lmms_eval:Qwen3VLFlexSelectSimple",
        ),
    ),
    frames_option="max_num_frames",
    frames_per_unit=2,
    published=tuple(
        PublishedModel(f"Qwen3-VL-{size}", f"Qwen3-VL-{size}-Instruct", *shape) for size, shape in _SIZES.items()
    ),
    published_arguments=_LIKE_QWEN2_5_VL,
    relative_depth=20 / 28,
    options=f"{_HERE}.options:Options",
    reader=f"{_HERE}.reader:Qwen3VLReader",
    selector_network=f"{_HERE}.lite:SelectorNetwork",
    shape=f"{_HERE}.shape:shape",
)
