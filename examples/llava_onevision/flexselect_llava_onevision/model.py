"""``--model llava_onevision_flexselect``: lmms-eval's `llava_hf` with the visual tokens of videos selected."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from lmms_eval.models.simple import llava_hf as upstream
from loguru import logger
from transformers import LlavaOnevisionForConditionalGeneration

from flexselect_llava_onevision.family import LlavaOnevision
from flexselect_llava_onevision.reader import OnevisionReader, read_frames
from lmms_flexselect.errors import OptionError, VideoError
from lmms_flexselect.loading import checkpoint_config
from lmms_flexselect.models.plugin import FlexSelectPlugin
from lmms_flexselect.models.records import PreparedRow
from lmms_flexselect.models.selecting_model import BatchSelectingModel
from lmms_flexselect.models.upstream import EscapeUpstream, StrictLoader
from lmms_flexselect.video.key import VideoKey, video_key


class SelectingLlava(BatchSelectingModel):
    """What upstream's loop calls ``generate`` on."""

    _inputs = frozenset({"input_ids", "attention_mask", "pixel_values", "image_sizes", "batch_num_images"})
    _inputs |= {"pixel_values_videos", "video_keys"}
    _visual_token = "image_token_id"

    def _passes_through(self, inputs: Mapping[str, Any]) -> bool:
        return "pixel_values_videos" not in inputs


class LlavaOnevisionFlexSelect(FlexSelectPlugin, upstream.LlavaHf):
    """Prompts, loop and arguments are upstream's."""

    upstream_name = "llava_hf"
    _family_name = "llava_onevision"
    _upstream_module = upstream
    _placeholders = ("<image>", "<video>")
    _overrides = frozenset({"load_video", "_image_processor"})
    _image_processor: Any

    def _checkpoint_config(self, pretrained: str) -> Any:
        return checkpoint_config(pretrained, "llava_onevision")

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        if upstream_args["batch_size"] != 1:
            raise OptionError(f"batch_size={upstream_args['batch_size']}: upstream's llava_hf reads 1 at a time")
        self.options.check_frames(upstream_args["max_frames_num"])

    def _loaders(self) -> dict[str, Any]:
        return {
            "model_map": {"llava_onevision": StrictLoader(LlavaOnevisionForConditionalGeneration, self.options.dtype)}
        }

    def _family(self, model: Any) -> LlavaOnevision:
        return LlavaOnevision(model)

    def _selecting_model(self, *arguments: Any) -> SelectingLlava:
        self._processor, self._image_processor = self._image_processor, self._with_rows
        return SelectingLlava(*arguments)

    def reader(self) -> OnevisionReader:
        return OnevisionReader(self.family, self._processor, self.max_frames_num)

    def _video_keys(self, paths: Iterable[str]) -> Iterable[VideoKey | None]:
        return [video_key(path, self.max_frames_num) for path in paths]

    def _read_video(self, key: VideoKey) -> Any:
        return read_frames(key.path, self.max_frames_num)

    def _frame_count(self, frames: int, fps: float) -> int:
        return self.max_frames_num

    def load_video(self, video_path: Any, max_frames_num: int) -> Any:
        """Frames as upstream takes them; what was read, or why it was not, goes to the processor beside them."""
        path = video_path if isinstance(video_path, str) else video_path[0]
        self._row, self._key, start = PreparedRow(), video_key(path, max_frames_num), time.perf_counter()
        try:
            frames, metadata = self._frames.get(self._key) if self._key else read_frames(path, max_frames_num)
        except VideoError as error:
            if self.options.strict:
                raise EscapeUpstream(error) from error
            logger.warning(f"answered empty: {error}")
            self._row.error = str(error)
            return upstream.np.zeros((1, 8, 8, 3), upstream.np.uint8)
        self._row.videos, self._row.seconds = [{"path": path, **metadata}], time.perf_counter() - start
        return frames.numpy()

    def _with_rows(self, videos: Any = None, text: str = "", **kwargs: Any) -> Any:
        inputs = self._processor(videos=videos, text=text, **kwargs)
        row = self._row if videos else PreparedRow()
        row.text, inputs["rows"] = text, [row]
        if videos:
            inputs["video_keys"] = [None if row.error else self._key]
        return inputs
