"""`FlexSelectOptions`: every knob of the plugin, read from lmms-eval's ``--model_args`` and checked at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from lmms_flexselect.errors import OptionError
from lmms_flexselect.method.registry import canonical_name, selector_class
from lmms_flexselect.method.relevance import REDUCTIONS
from lmms_flexselect.method.selection import REMAINDERS

Options = TypeVar("Options", bound="FlexSelectOptions")


@dataclass
class FlexSelectOptions:
    """What FlexSelect does, resolved: defaults, then the checkpoint's preset, then what the user gave.

    A family with options of its own has a subclass (`FamilySpec.options`).

    Attributes
    ----------
    CHOICES
        The words that an option may be.
    NO_VALUE
        The words that stand for None, where None is allowed, since ``--model_args`` carries text.
    selector
        ``flexselect`` (``reference`` is an earlier name of it), ``lite`` (FlexSelect-Lite), ``uniform`` and ``random``
        (controls at the same budget), ``none`` (the paired baseline: same wrapper, same prompt, same frames, nothing
        dropped), or another one (see `lmms_flexselect.method.selectors`).
    selector_path
        Folder or hub name of a FlexSelect-Lite selector; goes with ``selector=lite`` only.
    selector_args
        What a selector of somebody else's takes besides, by name; on the command line ``name:value;name:value``. None
        for nothing.
    reference_layer
        Decoder layer whose attention scores, 0-based; None until the preset fills it in. On the command line also
        ``auto:FILE``, a file that ``lmms-flexselect recall`` wrote.
    token_budget
        Visual tokens kept of one prompt.
    max_frames_per_set
        Frames, or what the family makes one unit of, in one frame set.
    reduction
        ``max`` or ``mean`` over heads and text tokens.
    budget_remainder
        ``spread`` hands the tokens that do not divide by the number of sets to the first sets; ``drop`` is the
        way of the authors' implementation.
    seed
        Of ``selector=random``.
    dtype
        Of the model's weights.
    strict
        Stop at a video that cannot be read; otherwise its sample is answered empty, counted and listed.
    video_decode_backend
        ``pyav`` shows of every file the frames that a player does; ``decord`` refuses those of which it would not.
        ``image`` reads folders of pictures only, where a family can.
    video_timeout
        Seconds for which the reading of a video may stand still, without a packet or a frame, before it is given up.
    dump_selection
        Folder that receives one ``.npz`` a sample with what was kept; None for none.
    prefetch_videos
        Videos that are decoded in background threads before their turn, and threads that do it; 0 decodes each when
        its turn comes. Frames of one video more than that, the one in use, are held in memory, resized, as bytes.
    store_gpu_gib, store_cpu_gib
        How much of each process's GPUs' and host's memory, in GiB, may hold what the questions about one video have in
        common (its visual tokens, and what scoring makes of them); 0 and 0 computes everything anew for every
        question. Answers are the same. At the paper's settings a video of a 7B or 8B model takes 5 to 8 GiB.
    process_timeout
        Hours that one process of several waits for another, which then takes the run to hang and ends it.
    """

    CHOICES: ClassVar[Mapping[str, Sequence[str]]] = {
        "reduction": REDUCTIONS,
        "budget_remainder": REMAINDERS,
        "dtype": ("bfloat16", "float16", "float32"),
        "video_decode_backend": ("pyav", "decord", "image"),
    }
    NO_VALUE: ClassVar[Mapping[str, Sequence[str]]] = {
        "selector_path": ("none",),
        "reference_layer": ("none",),
        "dump_selection": ("none",),
    }

    selector: str = "flexselect"
    selector_path: str | None = None
    selector_args: dict[str, Any] | None = None
    reference_layer: int | None = None
    token_budget: int = 7040
    max_frames_per_set: int = 64
    reduction: str = "max"
    budget_remainder: str = "spread"
    seed: int = 0
    dtype: str = "bfloat16"
    strict: bool = True
    video_decode_backend: str = "pyav"
    video_timeout: float = 60.0
    dump_selection: str | None = None
    prefetch_videos: int = 2
    store_gpu_gib: float = 4.0
    store_cpu_gib: float = 8.0
    process_timeout: float = 12.0

    def __post_init__(self) -> None:
        for name, allowed in self.CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        selector_class(str(self.selector))
        self.selector = canonical_name(self.selector)
        self.selector_args = selector_arguments(self.selector_args)
        known = getattr(selector_class(self.selector), "arguments", ())
        for name in self.selector_args or ():
            if name not in known:
                takes = f"takes {', '.join(known)}" if known else "takes none"
                raise OptionError(f"selector_args={name}: selector={self.selector} {takes}")
        if self.selector == "lite" and not self.selector_path:
            raise OptionError("selector=lite: give selector_path, the folder or hub name of a FlexSelect-Lite selector")
        if self.selector != "lite" and self.selector_path is not None:
            raise OptionError(f"selector_path={self.selector_path}: goes with selector=lite, not {self.selector}")
        leasts = {"token_budget": 1, "max_frames_per_set": 1, "reference_layer": 0, "seed": 0, "prefetch_videos": 0}
        for name, least in leasts.items():
            if name != "reference_layer" or self.reference_layer is not None:
                setattr(self, name, whole_number(name, getattr(self, name), least))
        if not isinstance(self.strict, bool):
            raise OptionError(f"strict={self.strict}: must be true or false")
        for name in ("store_gpu_gib", "store_cpu_gib"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise OptionError(f"{name}={value}: must be a number of GiB, 0 for none")
            setattr(self, name, float(value))
        timeout = self.video_timeout
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
            raise OptionError(f"video_timeout={timeout}: must be a number of seconds greater than 0")
        self.video_timeout = float(timeout)
        hours = self.process_timeout
        if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not 0 < hours <= 24 * 365:
            raise OptionError(f"process_timeout={hours}: must be a number of hours, at most {24 * 365}")
        if self.dump_selection is not None:
            if isinstance(self.dump_selection, bool) or not str(self.dump_selection):
                raise OptionError(f"dump_selection={self.dump_selection}: give a folder")
            self.dump_selection = os.path.expanduser(str(self.dump_selection))
            try:
                os.makedirs(self.dump_selection, exist_ok=True)
            except OSError as error:
                raise OptionError(f"dump_selection={self.dump_selection}: cannot be made ({error.strerror})") from None

    @classmethod
    def names(cls) -> set[str]:
        """The model arguments that are ours."""
        return {f.name for f in fields(cls)}

    @classmethod
    def resolve(cls: type[Options], given: Mapping[str, Any], preset: Mapping[str, Any]) -> Options:
        """Explicit arguments win over the preset, the preset over the defaults."""
        merged = {name: value for name, value in {**preset, **given}.items() if name in cls.names()}
        for name, words in cls.NO_VALUE.items():
            if isinstance(merged.get(name), str) and merged[name].lower() in words:
                merged[name] = None
        if "strict" in merged:
            merged["strict"] = truth("strict", merged["strict"])
        return cls(**merged)

    def check_model(self, num_layers: int) -> None:
        """Raise `OptionError` unless the reference layer is one of the model's `num_layers` layers."""
        if self.selector == "flexselect" and not (
            self.reference_layer is not None and 0 <= self.reference_layer < num_layers
        ):
            raise OptionError(
                f"reference_layer={self.reference_layer}: this model has layers 0 to {num_layers - 1} "
                "(FlexSelect scores at one of them)"
            )

    def check_frames(self, max_frames: int) -> None:
        """Raise `OptionError` if a video of `max_frames` frames has more frame sets than the budget has tokens."""
        num_sets = -(-max_frames // self.max_frames_per_set)
        if self.selector != "none" and self.token_budget < num_sets:
            raise OptionError(
                f"token_budget={self.token_budget}: {max_frames} frames make {num_sets} frame sets of at most "
                f"{self.max_frames_per_set}, so give at least {num_sets}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the log and the results file."""
        return asdict(self)


def selector_arguments(given: Any) -> dict[str, Any] | None:
    """``selector_args`` by name: of a mapping, or of text as in ``name:value;name:value``; None for none.

    Raises
    ------
    OptionError
        If it is neither.
    """
    if isinstance(given, Mapping):
        return dict(given) or None
    if given is None or str(given).lower() in ("", "none"):
        return None
    found: dict[str, Any] = {}
    for part in str(given).split(";"):
        name, colon, value = (piece.strip() for piece in part.partition(":"))
        if not name or not colon or name in found:
            raise OptionError(f"selector_args={given}: must be name:value;name:value, each name once")
        found[name] = _plain_value(value)
    return found


def _plain_value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def check_names(given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise `OptionError` for the first unknown model argument, naming the nearest known one."""
    known = sorted(set(allowed))
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise OptionError(f"unknown model argument {name}: {hint}known are {', '.join(known)}")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise `OptionError` unless `value` is among the allowed words."""
    if value not in (allowed := tuple(allowed)):
        raise OptionError(f"{name}={value}: must be one of {', '.join(allowed)}")


def truth(name: str, value: Any) -> bool:
    """`value` as a bool: one already, or yes, on, 1 and their like as the command line has them."""
    for words, meant in ((("true", "yes", "on", "1"), True), (("false", "no", "off", "0"), False)):
        if str(value).lower() in words:
            return meant
    raise OptionError(f"{name}={value}: must be true or false")


def whole_number(name: str, value: Any, at_least: int) -> int:
    """`value` as an int; ``--model_args`` makes ``-5`` a float."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise OptionError(f"{name}={value}: must be a whole number of at least {at_least}")
    return value


def layer_numbers(words: str, num_layers: int, said: str) -> list[int]:
    """Layers from ``all``, or from numbers and ranges as in ``0,4,8-12``: in the order given, each once.

    `said` is what the user wrote, as an error repeats it: ``--layers 0,99``.

    Raises
    ------
    OptionError
        If it is none of that, or names a layer that the model does not have.
    """
    if words == "all":
        return list(range(num_layers))
    numbers: list[int] = []
    for part in words.split(","):
        if not (found := re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)):
            raise OptionError(f"{said}: must be all, or numbers and ranges as in 0,4,8-12")
        numbers += range(int(found[1]), int(found[2] or found[1]) + 1)
    if not numbers or max(numbers) >= num_layers:
        raise OptionError(f"{said}: this model has layers 0 to {num_layers - 1}")
    return list(dict.fromkeys(numbers))
