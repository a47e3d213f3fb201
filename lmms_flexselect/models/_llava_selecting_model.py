"""`SelectingModel` for lmms-eval's `llava_vid`."""

from __future__ import annotations

from typing import Any

import torch
from loguru import logger
from torch import Tensor

from lmms_flexselect.errors import VideoError
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, continuation_loss
from lmms_flexselect.models._llava_frames import LlavaFrames
from lmms_flexselect.models._measure import now, peak_memory
from lmms_flexselect.models._selecting_model import SelectingModel, prompt_counts


class LlavaSelectingModel(SelectingModel):
    """Called as upstream calls the original LLaVA-Video."""

    def generate(
        self,
        inputs: Tensor,
        images: list[LlavaFrames],
        attention_mask: Any = None,
        modalities: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """transformers' ``generate``, over a prompt shortened to the token budget.

        Parameters
        ----------
        inputs
            ``(1, tokens)`` int64 with `VIDEO_TOKEN` where the video belongs.
        images
            The one video.
        attention_mask, modalities
            As upstream passes them; not read, since nothing is padded and all is video.

        Returns
        -------
        Tensor
            ``(1, new)`` int64: new tokens alone, padding if the video could not be read.
        """
        (video,) = images
        if video.failure is not None:
            if self._options.strict or not isinstance(video.failure, VideoError):
                raise video.failure
            logger.warning(f"answered empty: {video.failure}")
            inputs = inputs[inputs != VIDEO_TOKEN][None]
        if not kwargs.get("do_sample"):
            kwargs = {name: value for name, value in kwargs.items() if name not in ("temperature", "top_p")}
        shown = [] if video.failure else [video]
        inputs_of = {"videos": [v.frames for v in shown], "video_keys": [v.key for v in shown]}
        return self._generated({"input_ids": inputs, **inputs_of}, [video.row], **kwargs)

    def __call__(
        self, input_ids: Tensor, labels: Tensor, images: list[LlavaFrames], modalities: Any = None
    ) -> dict[str, Tensor]:
        """How likely the labelled end of a text is, behind its beginning shortened to the token budget.

        What is kept is chosen by the beginning alone, so that it is the same for every continuation.

        Parameters
        ----------
        input_ids
            ``(1, tokens)`` int64 with `VIDEO_TOKEN` where the video belongs.
        labels
            Of the same shape, -100 for the beginning.
        images
            The one video.

        Returns
        -------
        dict
            ``loss``, the mean negative log-likelihood of the labelled tokens; ``logits`` ``(1, tokens, vocabulary)``,
            where row i is what token i was predicted from, so that upstream's comparison with `input_ids` holds;
            zero for the beginning.

        Raises
        ------
        VideoError
            If the video could not be read, also with ``strict=false``: there is no empty likelihood.
        """
        (video,) = images
        if video.failure is not None:
            raise video.failure
        context = int((labels[0] == -100).sum())
        continuation = input_ids[0, context:]
        start = now()
        with peak_memory() as peak:
            (selection,), selector_seconds = self._selected(
                {"input_ids": input_ids[:, :context], "videos": [video.frames], "video_keys": [video.key]}
            )
            predicted = self._family.continuation_logits(selection.prompt, continuation)
            end = now()
        counts = [{**prompt_counts(selection), "output_tokens": len(continuation)}]
        self._record(
            [video.row],
            [selection],
            counts,
            time_to_first_token_seconds=end - start,
            selector_seconds=selector_seconds,
            generate_seconds=end - start,
            peak_memory_gib=peak.gib,
        )
        beginning = predicted.new_zeros(context, predicted.shape[-1])
        logits = torch.cat([beginning, predicted])[None].to(input_ids.device)
        return {"loss": continuation_loss(predicted, continuation), "logits": logits}
