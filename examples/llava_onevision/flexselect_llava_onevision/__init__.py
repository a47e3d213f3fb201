"""LLaVA-OneVision in transformers' layout, over lmms-eval's `llava_hf`."""

from lmms_flexselect.families.spec import FamilySpec, ModelName

_HERE = "flexselect_llava_onevision"

SPEC = FamilySpec(
    name="llava_onevision",
    title="LLaVA-OneVision",
    models=(
        ModelName("llava_onevision_flexselect", simple=f"{_HERE}.model:LlavaOnevisionFlexSelect", upstream="llava_hf"),
    ),
    frames_option="max_frames_num",
    defaults={"token_budget": 32 * 196},  # 32 frames' worth
    reference_layer_source="nobody; lmms-flexselect recall measures it",
    upstream_device_map="cuda:0",
    reader=f"{_HERE}.reader:OnevisionReader",
    shape=f"{_HERE}.shape:shape",
)
