"""The needle models' tokenizer: byte-level BPE with ChatML's marks, learned here from the benchmark's few words."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer

from lmms_flexselect.families.chatml import SYSTEM
from lmms_flexselect.needle.benchmark import question
from lmms_flexselect.needle.videos import COLOURS, SHAPES

MAX_POSITIONS = 32768

# ChatML's, and the end of a text.
TEXT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def build_tokenizer(
    special_tokens: Sequence[str] = TEXT_TOKENS, words: Sequence[str] = (), **named: str
) -> Qwen2Tokenizer:
    """Any text is representable, and each word of a needle question, and each of `words`, is one token.

    Special tokens that a processor asks the tokenizer for have names: ``video_token="<video>"``.
    """
    corpus = [f"{word} {word}" for word in [*COLOURS, *SHAPES]]
    corpus += [question("red"), "You are a helpful assistant.", "system\n", "user\n", "assistant\n"]
    corpus += ["Answer with the option's letter from the given choices directly.", "The best answer is: A. B. C. D."]
    corpus += [f"{word} {word}" for word in words]
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    # The vocabulary limit is out of reach: merging stops when every word of the corpus has become one token.
    trainer = BpeTrainer(vocab_size=4096, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    bpe.train_from_iterator(corpus, trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **named,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    return tokenizer


_SYSTEM_TURN = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
SYSTEM<|im_end|>
{% endif -%}
"""

_TURNS = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' -%}
VIDEO
{%- elif part['type'] in ('image', 'image_url') -%}
IMAGE
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def chat_template(video: str, image: str, system: str | None = None, own_line: bool = False) -> str:
    """A Jinja chat template of ChatML turns.

    Parameters
    ----------
    video, image
        What stands for one of them.
    system
        Text of a first turn, for chats that have none of their own; None for no such turn.
    own_line
        Whether a newline follows each video and image.
    """
    template = "" if system is None else _SYSTEM_TURN.replace("SYSTEM", system)
    template += _TURNS
    for mark, text in (("VIDEO", video), ("IMAGE", image)):
        template = template.replace(f"{mark}\n{{%- elif", f"{text}\n{{% elif" if own_line else f"{text}\n{{%- elif")
    return template


# Of models whose template puts every image and video between marks, after a default system message.
MARKED_TOKENS = (
    *TEXT_TOKENS,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKED_CHAT_TEMPLATE = chat_template(
    video="<|vision_start|><|video_pad|><|vision_end|>",
    image="<|vision_start|><|image_pad|><|vision_end|>",
    system=SYSTEM,
)
