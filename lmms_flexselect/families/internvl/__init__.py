"""InternVL2.5 from its original checkpoints; InternVL2.5-MPO, 3 and 3.5 in transformers' layout."""

from lmms_flexselect.families.spec import FamilySpec, ModelName, PublishedModel

_HERE = "lmms_flexselect.families.internvl"

SPEC = FamilySpec(
    name="internvl_hf",
    title="InternVL",
    models=(
        ModelName("internvl_hf_flexselect", chat=f"{_HERE}.lmms_eval:InternVLHfFlexSelect"),
        ModelName("internvl2_flexselect", chat=f"{_HERE}.lmms_eval:InternVL2FlexSelect"),
    ),
    frames_option="num_frames",
    # 512 frames of 256 tokens and two marks, of which 32 frames' worth are kept.
    defaults={"token_budget": 32 * 258},
    published=(PublishedModel("InternVL2.5-8B", "InternVL2_5-8B", 4096, 32, {"template": "internvl2_5"}),),
    published_arguments={"num_frames": 512},
    reference_layers={32: 15},
    relative_depth=15 / 32,
    options=f"{_HERE}.options:Options",
    reader=f"{_HERE}.reader:InternVLReader",
    selector_network=f"{_HERE}.lite:SelectorNetwork",
    shape=f"{_HERE}.shape:shape",
    needle=f"{_HERE}.needle:NeedleInternVL",
)
