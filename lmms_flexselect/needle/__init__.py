"""A needle-in-a-haystack benchmark, and tiny trained VideoLLMs that solve it, with no hub and no GPU.

Videos of colour noise hide a few coloured glyphs; a question names a colour, the answer is the glyph's shape. The
second kind of model is asked for a colour by its field in a chart (`lmms_flexselect.needle.naming`).
"""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CHART_CHECKPOINTS = Path(__file__).parent / "chart_checkpoints"

# What `pretrained` may be instead of a folder or a hub name; each holds a folder a family, by lmms-eval's name of it.
PRETRAINED = {"needle": CHECKPOINTS, "needle_chart": CHART_CHECKPOINTS}
