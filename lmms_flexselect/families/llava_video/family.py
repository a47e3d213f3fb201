"""LLaVA-Video: frames and token ids to `VideoPrompt`s, and answers from them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.families.chatml import END, chatml, marked_token_ids
from lmms_flexselect.families.family import (
    Family,
    VisualTokens,
    gradients_for_selector,
    keys_and_omissions,
    reading_inputs,
    retry_after_offload,
)
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM, check_pooling
from lmms_flexselect.families.pixels import normalised
from lmms_flexselect.lite.networks import Tower
from lmms_flexselect.loading import load_tokenizer, load_whole
from lmms_flexselect.method.prompt import VideoPrompt, consecutive

VIDEO_TOKEN = -200  # where a video stands in the token ids: LLaVA's own mark, one a video


def pixel_values(frames: Tensor, size: int) -> Tensor:
    """What the tower reads: ``(frames, height, width, 3)`` uint8 to ``(frames, 3, size, size)`` float32 in -1..1."""
    return normalised(frames, size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def load_llava_video(
    pretrained: str, dtype: torch.dtype = torch.bfloat16, config: LlavaVideoConfig | None = None, **kwargs: Any
) -> tuple[LlavaVideo, Any]:
    """The family and its tokenizer, from a checkpoint in the original layout.

    Parameters
    ----------
    pretrained
        Hub name or folder.
    dtype
        Of the weights.
    config
        What `LlavaVideoConfig.from_checkpoint` gave, perhaps altered; read here if None.
    kwargs
        For transformers' ``from_pretrained``: ``device_map``, ``attn_implementation``, ….

    Raises
    ------
    OptionError
        If the checkpoint is of another layout, cannot pool so, or is not whole.
    """
    config = config or LlavaVideoConfig.from_checkpoint(pretrained)
    check_pooling(config.mm_spatial_pool_mode, config.mm_spatial_pool_stride, config.patches_a_side)
    tokenizer = load_tokenizer(Qwen2Tokenizer, pretrained)
    if END not in tokenizer.get_vocab():  # without files transformers makes an empty one
        raise OptionError(f"pretrained={pretrained}: its tokenizer cannot be read (there is no {END} in it)")
    model = load_whole(LlavaVideoForCausalLM, pretrained, dtype, all_known=True, config=config, **kwargs)
    return LlavaVideo(model.eval()), tokenizer


def question_ids(question: str, tokenizer: Any) -> Tensor:
    """Token ids ``(1, tokens)`` of a question about one video, in LLaVA-Video's chat form."""
    chat = chatml([("user", f"<image>\n{question}"), ("assistant", None)])
    return torch.tensor([marked_token_ids(chat, tokenizer, "<image>", VIDEO_TOKEN)])


@dataclass
class LlavaVideo(Family):
    """Reads a `LlavaVideoForCausalLM`.

    Attributes
    ----------
    model
        The loaded model, on any device or devices.
    frames_per_chunk
        Frames that go through the tower together: bounds memory, changes nothing.
    """

    name: ClassVar[str] = "llava_vid"
    model: Any
    frames_per_chunk: int = 32
    # As in the original.
    generate_sees_ids: ClassVar[bool] = False

    @property
    def decoder(self) -> nn.Module:
        """The text model."""
        return self.model.model

    @property
    def tower(self) -> Tower:
        """What a FlexSelect-Lite selector reads."""
        config = self.model.config
        pooling = {name: getattr(config, name) for name in ("mm_spatial_pool_mode", "mm_spatial_pool_stride")}
        return Tower(self.name, config.vision_config.hidden_size, pooling)

    @retry_after_offload
    @gradients_for_selector
    def prompts(self, inputs: Mapping[str, Any]) -> list[VideoPrompt]:
        """Embed a batch: one unpadded prompt a row.

        Nothing is truncated: the original code cuts prompts at ``tokenizer_model_max_length``, 156 frames.

        Parameters
        ----------
        inputs
            ``input_ids`` ``(batch, tokens)`` with `VIDEO_TOKEN` once where each video belongs; ``attention_mask``
            of the same shape, if rows are padded; ``videos``, one ``(frames, height, width, 3)`` uint8 tensor for
            each mark, in their order, None where pixels are omitted; ``video_keys`` and ``pixels_omitted`` (see
            `Family`).

        Raises
        ------
        FlexSelectError
            If marks and videos do not match in number.
        """
        ids = inputs["input_ids"]
        on_cpu = ids.cpu()
        videos = list(inputs.get("videos") or [])
        marks = int((on_cpu == VIDEO_TOKEN).sum())
        if marks != len(videos):
            raise FlexSelectError(f"the prompts have {marks} place(s) for a video, and there are {len(videos)} videos")
        keys, pixels_omitted = keys_and_omissions(inputs, marks)
        padding = inputs.get("attention_mask", torch.ones_like(on_cpu)).cpu().bool()
        found = self.visual_tokens(
            keys, pixels_omitted, lambda some: [self._encode(videos[n], ids.device) for n in some]
        )
        waiting = zip(keys, found, strict=True)
        return [self._prompt(row[real], ids.device, waiting) for row, real in zip(on_cpu, padding, strict=True)]

    def _prompt(
        self, ids: Tensor, device: torch.device, waiting: Iterator[tuple[Hashable, VisualTokens]]
    ) -> VideoPrompt:
        rows, columns = self.model.model.grid
        keyed = list(islice(waiting, int((ids == VIDEO_TOKEN).sum())))
        keys, own = tuple(key for key, _ in keyed), [tokens for _, tokens in keyed]
        sizes = torch.ones_like(ids)
        sizes[ids == VIDEO_TOKEN] = torch.tensor([len(tokens.model) for tokens in own], dtype=ids.dtype)
        expanded = ids.repeat_interleave(sizes)
        video = torch.full_like(expanded, -1)
        frame = torch.full_like(expanded, -1)
        spoken = expanded.clamp(min=0).to(device)
        embeds = self.model.get_input_embeddings()(spoken)
        of_selector = None if self.selector is None else self.selector.embed(spoken)
        grids = []
        places = sizes.cumsum(0) - sizes
        for number, (tokens, place) in enumerate(zip(own, places[ids == VIDEO_TOKEN].tolist(), strict=True)):
            behind = place + len(tokens.model)
            grids.append((len(tokens.model) // (rows * columns), rows, columns))
            embeds[place:behind] = tokens.model.to(embeds.device)
            if of_selector is not None and tokens.selector is not None:
                of_selector[place:behind] = tokens.selector.to(of_selector.device)
            video[place:behind] = number
            frame[place:behind] = torch.arange(grids[-1][0]).repeat_interleave(rows * columns)

        positions = consecutive(torch.ones_like(expanded))
        prompt = VideoPrompt(
            expanded, embeds, positions, video, frame, grids, consecutive, closes_up=True, video_keys=keys
        )
        if of_selector is not None:
            prompt.scorer = replace(prompt, inputs_embeds=of_selector)
        return prompt

    def _picture(self, columns: Tensor, rows: int, cols: int) -> Tensor:
        return columns.view(rows, cols)[:, :-1]  # a newline ends each row

    def _encode(self, frames: Tensor, device: torch.device) -> VisualTokens:
        """The visual tokens of a video, from frames ``(frames, height, width, 3)`` uint8."""
        size, dtype = self.model.config.vision_config.image_size, self.model.dtype
        tokens, of_selector = [], []
        for chunk in frames.split(self.frames_per_chunk):
            pixels = pixel_values(chunk.cpu(), size)
            # With the model over several devices, accelerate's hooks take the pixels on to where the tower lies.
            with reading_inputs(self.model.model.mm_projector[0]) as read:
                found = self.model.model.encode_frames(pixels.to(device, dtype))
            tokens.append(found.to(device, dtype).flatten(0, 1))
            if self.selector is not None:
                of_selector.append(self.selector_tokens(read[0]).flatten(0, 1))
        return VisualTokens(torch.cat(tokens), torch.cat(of_selector) if of_selector else None)

    @retry_after_offload
    @torch.no_grad()
    def continuation_logits(self, prompt: VideoPrompt, continuation: Tensor) -> Tensor:
        """What the model predicts for each token of a text put behind a prompt.

        Parameters
        ----------
        prompt
            Shortened or not.
        continuation
            ``(tokens,)`` int64.

        Returns
        -------
        Tensor
            ``(tokens, vocabulary)`` float32: row i is predicted from everything before continuation token i.
        """
        behind = self.model.get_input_embeddings()(continuation.to(prompt.inputs_embeds.device))
        embeds = torch.cat([prompt.inputs_embeds, behind])[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        keep = len(continuation) + 1
        logits = self.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
        return logits[0, :-1].float()


def continuation_loss(logits: Tensor, continuation: Tensor) -> Tensor:
    """Mean negative log-likelihood of a continuation, a scalar: what lmms-eval's LLaVA classes return as loss."""
    return F.cross_entropy(logits, continuation.to(logits.device))
