"""LLaVA-OneVision in transformers' layout, over lmms-eval's `llava_hf`."""

from lmms_flexselect.families.spec import FamilySpec, ModelName

_MODEL = "flexselect_llava_onevision.model:LlavaOnevisionFlexSelect"

SPEC = FamilySpec(
    name="llava_onevision",
    title="LLaVA-OneVision",
    models=(ModelName("llava_onevision_flexselect", simple=_MODEL, upstream="llava_hf"),),
    frames_option="max_frames_num",
    defaults={"token_budget": 32 * 196},  # 32 frames' worth
    reference_layer_source="nobody; lmms-flexselect recall measures it",
    upstream_device_map="cuda:0",
    reader="flexselect_llava_onevision.reader:OnevisionReader",
    shape="flexselect_llava_onevision.shape:shape",
)
