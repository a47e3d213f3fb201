"""Entry point ``lmms_eval.models``: which model names this plugin adds.

Imports nothing but lmms-eval's registry, and that only when asked: lmms-eval loads this module while it is itself
being imported, and an exception here would silently unregister every plugin after this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> list[ModelManifest]:
    """The model classes of this plugin, by the names that ``lmms-eval --model`` takes."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            model_id="qwen2_5_vl_flexselect",
            simple_class_path="lmms_flexselect.models.qwen2_5_vl.Qwen2_5_VLFlexSelectSimple",
            chat_class_path="lmms_flexselect.models.qwen2_5_vl.Qwen2_5_VLFlexSelect",
        ),
        ModelManifest(
            model_id="qwen3_vl_flexselect",
            simple_class_path="lmms_flexselect.families.qwen3_vl.models.Qwen3VLFlexSelectSimple",
            chat_class_path="lmms_flexselect.families.qwen3_vl.models.Qwen3VLFlexSelect",
        ),
        ModelManifest(
            model_id="llava_vid_flexselect",
            simple_class_path="lmms_flexselect.models.llava_vid.LlavaVidFlexSelect",
        ),
        ModelManifest(
            model_id="internvl_hf_flexselect",
            chat_class_path="lmms_flexselect.models.internvl_hf.InternVLHfFlexSelect",
        ),
        ModelManifest(
            model_id="internvl2_flexselect",
            chat_class_path="lmms_flexselect.models.internvl_hf.InternVL2FlexSelect",
        ),
    ]
