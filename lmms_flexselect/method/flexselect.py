"""`FlexSelect`: from a long prompt to a short one; the only place where the steps meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.method.frame_sets import interleaved_frame_sets
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.selection import round_up, set_quotas, share_budget
from lmms_flexselect.method.selectors import Selector


@dataclass
class Selection:
    """What was kept of one prompt, and why; on the CPU.

    Attributes
    ----------
    prompt
        The shortened prompt.
    keep
        ``(tokens,)`` bool over the full prompt; text is always kept.
    scores
        ``(visual,)`` float32 over the full prompt's visual tokens; NaN where nothing was scored.
    frame_set
        ``(visual,)`` int64: the frame set of each visual token, counted through all videos of the prompt.
    visual_columns
        ``(visual,)`` int64: where the visual tokens stand in the full prompt.
    visual_kept
        ``(visual,)`` bool: `keep` at the visual tokens.
    visual_frame, visual_video
        ``(visual,)`` int64: frame and video of each visual token.
    """

    prompt: VideoPrompt
    keep: Tensor
    scores: Tensor
    frame_set: Tensor
    visual_columns: Tensor = field(repr=False)
    visual_kept: Tensor = field(repr=False)
    visual_frame: Tensor = field(repr=False)
    visual_video: Tensor = field(repr=False)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens before selection."""
        return len(self.visual_kept)

    @property
    def kept_tokens(self) -> int:
        """Visual tokens after selection."""
        return int(self.visual_kept.sum())

    def tokens_per_frame(self, video: int = 0) -> Tensor:
        """How many tokens of each frame were kept: ``(frames,)`` int64."""
        of_video = self.visual_video == video
        frames = self.visual_frame[of_video]
        if not len(frames):
            raise FlexSelectError(f"video {video}: the prompt has {len(self.prompt.grids)} video(s), counted from 0")
        return torch.bincount(frames[self.visual_kept[of_video]], minlength=int(frames.max()) + 1)


@dataclass
class FlexSelect:
    """Partition, score, select, aggregate (paper, section 3.2).

    Attributes
    ----------
    selector
        Who decides; None keeps everything (the paired baseline).
    token_budget
        Visual tokens to keep of one prompt; its videos share them by size.
    max_frames_per_set
        Upper bound of a frame set.
    budget_remainder
        What becomes of the tokens that do not divide by the number of sets: ``"spread"`` or ``"drop"``.
    round_budget
        Round each video's share up to whole frames, as the authors' implementation does for some families.
    """

    selector: Selector | None
    token_budget: int = 7040
    max_frames_per_set: int = 64
    budget_remainder: str = "spread"
    round_budget: bool = True

    def __post_init__(self) -> None:
        if self.token_budget < 1:
            raise OptionError(f"token_budget={self.token_budget}: must be at least 1 visual token")

    def __call__(self, prompt: VideoPrompt) -> Selection:
        """Shorten one prompt to the token budget; the text around the videos is never touched.

        Nothing is scored, and the prompt comes back whole, where the budget is no smaller than a video.

        Raises
        ------
        OptionError
            If the budget does not leave one token for every frame set.
        """
        keep = torch.ones(len(prompt), dtype=torch.bool)
        visual_columns = prompt.visual.cpu().nonzero().squeeze(-1)
        video, frame = (each.cpu()[visual_columns] for each in (prompt.video, prompt.frame))
        frame_set = torch.zeros_like(frame)
        found: list[tuple[Tensor, Tensor]] = []  # of the visual tokens numbered so, their scores
        of_videos = [(video == number).nonzero().squeeze(-1) for number in range(prompt.num_videos)]
        sizes = [len(tokens) for tokens in of_videos]
        selecting = bool(of_videos) and self.selector is not None
        budgets = share_budget(self.token_budget, sizes) if selecting else sizes
        first_set = 0
        for tokens, budget in zip(of_videos, budgets, strict=True):
            frames = frame[tokens]
            num_frames = int(frames.max()) + 1
            if self.round_budget:
                budget = round_up(budget, len(tokens) // num_frames)
            set_of_token, num_sets = self._sets(frames, num_frames)
            frame_set[tokens] = set_of_token + first_set
            first_set += num_sets
            if self.selector is None or len(tokens) <= budget:
                continue
            columns = visual_columns[tokens]
            sets = [set_of_token == number for number in range(num_sets)]
            set_sizes = torch.bincount(set_of_token, minlength=num_sets).tolist()
            quotas = set_quotas(budget, set_sizes, self.budget_remainder)
            kept, relevance = self.selector(prompt, columns, sets, quotas)
            _check_kept(self.selector, kept, len(tokens), sum(quotas))
            keep[columns] = kept
            if relevance is not None:
                found.append((tokens, relevance))
        scores = torch.full((len(visual_columns),), torch.nan)
        for tokens, relevance in found:
            scores[tokens] = _checked_scores(self.selector, relevance, len(tokens))
        return Selection(
            prompt=prompt if bool(keep.all()) else prompt.keep(keep),
            keep=keep,
            scores=scores,
            frame_set=frame_set,
            visual_columns=visual_columns,
            visual_kept=keep[visual_columns],
            visual_frame=frame,
            visual_video=video,
        )

    def _sets(self, frames: Tensor, num_frames: int) -> tuple[Tensor, int]:
        """The frame set of each token, and how many sets there are."""
        set_of_frame = torch.empty(num_frames, dtype=torch.int64)
        frame_sets = interleaved_frame_sets(num_frames, self.max_frames_per_set)
        for number, members in enumerate(frame_sets):
            set_of_frame[members] = number
        return set_of_frame[frames], len(frame_sets)


def _check_kept(selector: Any, kept: Any, tokens: int, quota: int) -> None:
    """Raise unless a selector, perhaps somebody else's, has said what `FlexSelect` needs."""
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != (tokens,):
        of = f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
        raise _broken(selector, f"keep must be bool ({tokens},), and is {of}")
    if kept.device.type != "cpu":
        raise _broken(selector, f"keep must lie on the CPU, and lies on {kept.device}")
    if (count := int(kept.sum())) > quota:
        raise _broken(selector, f"keeps {count} tokens of a video, {quota} are allowed")


def _checked_scores(selector: Any, relevance: Any, tokens: int) -> Tensor:
    if not isinstance(relevance, Tensor) or relevance.shape != (tokens,):
        of = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance).__name__
        raise _broken(selector, f"scores must be a tensor ({tokens},) or None, and are {of}")
    relevance = relevance.detach().float().cpu()
    if bool(relevance.isnan().any()):
        raise _broken(selector, "its scores are NaN")
    return relevance


def _broken(selector: Any, problem: str) -> FlexSelectError:
    return FlexSelectError(f"selector {type(selector).__module__}:{type(selector).__qualname__}: {problem}")
