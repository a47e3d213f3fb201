"""A needle-in-a-haystack benchmark, and a tiny trained VideoLLM that solves it, with no hub and no GPU.

Videos of colour noise hide a few coloured glyphs; a question names a colour, the answer is the glyph's shape.
"""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
