"""What every family has in common: a text model, and the selectors that read it or what its tower saw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.spec import family as family_named
from lmms_flexselect.lite.networks import Tower, network_of
from lmms_flexselect.lite.selector import Lite
from lmms_flexselect.method.prompt import VideoPrompt, generation_inputs, passing_extras
from lmms_flexselect.method.selectors import ReferenceLayer
from lmms_flexselect.runtime.store import VideoStore, weights_key


@dataclass(frozen=True)
class VisualTokens:
    """A video's visual tokens.

    Attributes
    ----------
    model
        ``(tokens, hidden)`` as the model has them.
    selector
        ``(tokens, hidden of the selector)`` as a FlexSelect-Lite selector has them; None without one.
    extras
        ``(tokens, …)`` each: what else the model's decoder takes of them (see `VideoPrompt.extras`).
    """

    model: Tensor
    selector: Tensor | None
    extras: dict[str, Tensor] = field(default_factory=dict)


def retry_after_offload(method: Callable[..., Any]) -> Callable[..., Any]:
    """Of a family's method: where a GPU runs out of memory, what is kept of videos leaves it; then another try."""

    @functools.wraps(method)
    def wrapped(self: Family, *arguments: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *arguments, **kwargs)
        except torch.OutOfMemoryError:
            if self.store is None or not self.store.leave_gpu():
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return method(self, *arguments, **kwargs)

    return wrapped


class Family:
    """How one VideoLLM is read; a family adds ``prompts(inputs)`` and, for FlexSelect-Lite selectors, `tower`.

    The inputs of every family's `prompts` may name their videos, so that a video's next question finds what was
    computed for the last one:

    video_keys
        One hashable a video, in the order of the videos, all prompts of the batch counted through: equal for equal
        frames, equally sampled and sized. None for a video that is not known.
    pixels_omitted
        One bool a video: whether its pixels are left out of the inputs, since `has_video` said so.

    Attributes
    ----------
    name
        Its `FamilySpec`'s.
    model
        The loaded model, on any device or devices.
    round_budget
        Whether the reference rounds this family's budget up to whole frames (see `FlexSelect`).
    generate_sees_ids
        Whether transformers' ``generate`` gets the prompt's token ids beside its embeddings, for stopping criteria and
        logits processors; otherwise these see new tokens alone.
    selector
        A FlexSelect-Lite selector's module (see `lmms_flexselect.lite`): prompts then hold what it reads.
    store
        Keeps visual tokens, and, for the selectors made after it was set, what scoring makes of them; None keeps
        nothing. Results are the same with and without.
    """

    name: ClassVar[str]
    model: Any
    round_budget: ClassVar[bool] = False
    generate_sees_ids: ClassVar[bool] = True
    selector: Any = None
    store: VideoStore | None = None

    @property
    def decoder(self) -> nn.Module:
        """The text model."""
        return self.model.model.language_model

    @property
    def tower(self) -> Tower:
        """What a FlexSelect-Lite selector reads.

        Raises
        ------
        OptionError
            If the family has no such selectors.
        """
        network_of(self.name)
        raise NotImplementedError

    def reference_layer(self, layer: int, reduction: str = "max") -> ReferenceLayer:
        """The training-free selector of this model."""
        return ReferenceLayer(self.decoder, layer, reduction, self.store)

    def read_selector_files(self, path: str) -> None:
        """Take from a FlexSelect-Lite selector's folder what prompts need beside its network: nothing by default."""

    def lite(self, selector: Any, reduction: str = "max") -> Lite:
        """FlexSelect-Lite: from now on every prompt is made for `selector` too, from one run of the tower."""
        self.selector = selector
        return Lite(selector.decoder, reduction, self.store)

    def selector_tokens(self, features: Tensor) -> Tensor:
        """Visual tokens as the selector has them, of what the model's own projector has read."""
        own = self.selector.get_input_embeddings().weight
        return self.selector.project(features.to(own.device, own.dtype))

    @retry_after_offload
    @torch.no_grad()
    def generate(self, prompts: list[VideoPrompt], **generate_kwargs: Any) -> list[Tensor]:
        """Answer a batch of prompts with the unchanged model.

        Decoding goes on from each prompt's last position plus one. `generate_kwargs` go to transformers' ``generate``.

        Returns
        -------
        list of Tensor
            New token ids of each prompt, ``(new,)`` int64, the prompt not included; shorter answers are padded.
        """
        inputs = generation_inputs(prompts)
        before = inputs["input_ids"].shape[1]
        if not self.generate_sees_ids:
            del inputs["input_ids"]
            before = 0
        with passing_extras(self.decoder, prompts):
            answers = self.model.generate(**inputs, **generate_kwargs)
        return list(answers[:, before:])

    def patches(self, prompt: VideoPrompt, frame: int) -> Tensor:
        """Where the tokens of a picture stand in a prompt, this model's or its selector's: ``(rows, columns)`` int64.

        Parameters
        ----------
        frame
            Of the first video: the family's unit (see `VideoPrompt.frame`).
        """
        of_frame = prompt.visual & (prompt.video == 0) & (prompt.frame == frame)
        return self._picture(of_frame.nonzero().squeeze(-1), *prompt.grids[0][1:])

    def _picture(self, columns: Tensor, rows: int, cols: int) -> Tensor:
        """Of the selectable tokens of a frame, those that stand for a piece of it."""
        return columns.view(rows, cols)

    def has_video(self, key: Hashable) -> bool:
        """Whether a prompt about this video can be made without its pixels (see `pixels_omitted` above)."""
        return self.store is not None and key is not None and self._features_name(key) in self.store

    def visual_tokens(
        self,
        keys: Sequence[Hashable],
        pixels_omitted: Sequence[bool],
        encode: Callable[[list[int]], list[VisualTokens]],
    ) -> list[VisualTokens]:
        """The visual tokens of some media: what is kept of them, or else what is made of them, kept from then on.

        Parameters
        ----------
        keys, pixels_omitted
            One each a medium, see above.
        encode
            Makes those of the media with these numbers, in this order.

        Raises
        ------
        FlexSelectError
            If nothing is kept of one whose pixels are left out.
        """
        store = None if torch.is_grad_enabled() else self.store
        found: dict[int, VisualTokens] = {}
        first: dict[Hashable, int] = {}  # of media to encode that a batch asks about more than once
        if store is not None:
            for number, key in enumerate(keys):
                if key is not None and (kept := store.get(self._features_name(key))) is not None:
                    found[number] = VisualTokens(*kept)
                elif key is not None and not pixels_omitted[number]:
                    first.setdefault(key, number)
        missing = [
            number for number, key in enumerate(keys) if number not in found and first.get(key, number) == number
        ]
        for number in missing:
            if pixels_omitted[number]:
                raise FlexSelectError(f"video {keys[number]}: its pixels are left out, and nothing of it is kept")
        found |= zip(missing, encode(missing) if missing else [], strict=True)
        for number in missing:
            if store is not None and keys[number] is not None:
                made = found[number]
                store.put(self._features_name(keys[number]), (made.model, made.selector, made.extras))
        return [found[number] if number in found else found[first[key]] for number, key in enumerate(keys)]

    def _features_name(self, key: Hashable) -> tuple[Hashable, ...]:
        of_selector = None if self.selector is None else weights_key(self.selector)
        # Of a model whose tokens may be pooled in several ways, the way is part of what a selector must share.
        tower = repr(self.tower) if family_named(self.name).selector_network else None
        return (key, "visual tokens", tower, weights_key(self.model), of_selector)


def keys_and_omissions(inputs: Mapping[str, Any], videos: int) -> tuple[list[Hashable], list[bool]]:
    """The keys of a batch's videos, and whether their pixels are left out (see `Family`).

    Raises
    ------
    FlexSelectError
        If there are not as many as videos.
    """
    keys, pixels_omitted = (list(inputs.get(name) or [nothing] * videos) for name, nothing in _OF_VIDEOS)
    if not len(keys) == len(pixels_omitted) == videos:
        raise FlexSelectError(
            f"{videos} video(s) in the prompts, {len(keys)} video_keys and {len(pixels_omitted)} pixels_omitted: "
            "give one a video"
        )
    return keys, pixels_omitted


_OF_VIDEOS: tuple[tuple[str, Any], ...] = (("video_keys", None), ("pixels_omitted", False))


def gradients_for_selector(prompts: Callable[..., Any]) -> Callable[..., Any]:
    """Of a family's `prompts`: no gradients, unless its selector is being trained (the model's own are frozen then)."""

    @functools.wraps(prompts)
    def wrapped(self: Family, *arguments: Any, **kwargs: Any) -> Any:
        training = self.selector is not None and self.selector.training
        with torch.set_grad_enabled(torch.is_grad_enabled() and training):
            return prompts(self, *arguments, **kwargs)

    return wrapped


@contextmanager
def reading_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what `module` is called with, call by call; undone on the way out."""
    read: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    try:
        yield read
    finally:
        handle.remove()
