"""transformers' Trainer for rank supervision: what is logged, evaluated, saved and gone on from."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lmms_flexselect.lite.checkpoint import selector_weights
from lmms_flexselect.saving import saving
from lmms_flexselect.training.objective import Example, RankSupervision

_COMPLETE = "complete"  # the last file of a checkpoint to be written
_MEASURED = ("rank_correlation", "top_k_overlap")


def collate(examples: list[Example]) -> dict[str, list[Example]]:
    """A batch: examples differ in length, so nothing is stacked."""
    return {"examples": examples}


class SelectorTrainer(Trainer):
    """Trains a `RankSupervision`.

    Parameters
    ----------
    write
        ``write(folder, weights)``: writes the selector, so that every checkpoint is a ``selector_path``.
    arguments
        For `Trainer`.
    """

    model: RankSupervision

    def __init__(self, *, write: Callable[[str, dict[str, Tensor]], None], **arguments: Any) -> None:
        super().__init__(data_collator=collate, **arguments)
        self._write = write
        self._final_dtype: torch.dtype | None = None
        self._measured: dict[str, list[float]] = defaultdict(list)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """The module's own loss; correlation and overlap are kept for the next log line."""
        outputs = model(**inputs)
        for name in _MEASURED:
            if name in outputs:
                self._measured[name].append(float(outputs[name]))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *arguments: Any, **kwargs: Any) -> None:
        """With the means since the last line."""
        if "loss" in logs:
            logs |= {name: round(sum(values) / len(values), 4) for name, values in self._measured.items()}
            self._measured.clear()
        super().log(logs, *arguments, **kwargs)

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Means over the held-out examples, on all processes."""
        # Sharded parameters come together in the wrapper's forward pass alone.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        model = self.model_wrapped if sharded else self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=self.args.device))
        for batch in self.get_eval_dataloader(eval_dataset):
            for example in batch["examples"]:
                with self.compute_loss_context_manager():
                    outputs = model([example])
                for name in ("loss", *_MEASURED, "examples"):
                    sums[name] += outputs[name].to(self.args.device)
        model.train(was_training)
        gathered = {name: float(self.accelerator.reduce(sums[name])) for name in ("loss", *_MEASURED, "examples")}
        metrics = {
            f"{metric_key_prefix}_{name}": gathered[name] / gathered["examples"] for name in ("loss", *_MEASURED)
        }
        metrics[f"{metric_key_prefix}_examples"] = gathered["examples"]
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:  # Trainer calls this on every process
            return
        weights = self.model.state_dict() if state_dict is None else state_dict
        prefix = "student."
        own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        if self._final_dtype is not None:
            own = {name: weight.to(self._final_dtype) for name, weight in own.items()}
        self._write(str(output_dir or self.args.output_dir), own)

    def save_final(self, dtype: torch.dtype) -> None:
        """Write the trained selector into the run's own folder; called on every process, which may hold but a shard."""
        self._final_dtype = dtype
        try:
            with saving(str(self.args.output_dir)):
                self.save_model(str(self.args.output_dir), _internal_call=True)
        finally:
            self._final_dtype = None

    def _save_checkpoint(self, *arguments: Any, **kwargs: Any) -> None:
        """Trainer's, and the mark that it is whole; older checkpoints go only after that of the new one is there."""
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with saving(folder):
                super()._save_checkpoint(*arguments, **kwargs)
                self.accelerator.wait_for_everyone()  # each process has a file of its own in there
                if self.args.should_save:
                    (folder / _COMPLETE).write_text(json.dumps({"step": self.state.global_step}) + "\n")
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            for old in whole_checkpoints(self.args.output_dir)[: -(limit or 0) or None] if limit else []:
                shutil.rmtree(old)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        weights = selector_weights(resume_from_checkpoint)
        (self.model if model is None else model).student.load_state_dict(weights)


def whole_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run that were written to their end, the oldest first."""
    folders = [p for p in checkpoint_folders(output_dir) if (p / _COMPLETE).is_file()]
    return sorted(folders, key=lambda p: int(p.name.rsplit("-", 1)[1]))


def drop_unfinished(output_dir: str | os.PathLike[str]) -> None:
    """Remove checkpoints that a kill left half-written, so that nobody takes them for whole."""
    for folder in checkpoint_folders(output_dir):
        if not (folder / _COMPLETE).is_file():
            shutil.rmtree(folder)


def checkpoint_folders(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Whole or not."""
    return list(Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def default_arguments() -> dict[str, Any]:
    """`TrainingArguments` of the paper's recipe, where the user gives nothing else (algorithm.md, section 5)."""
    on_gpu = torch.cuda.is_available()
    # Named only where it is wanted: the name is about to change.
    saving = {"gradient_checkpointing": True} if on_gpu else {}
    return {
        **saving,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "bf16": on_gpu,
        "save_strategy": "steps",
        "save_steps": 1000,
        "save_total_limit": 3,
        "eval_strategy": "steps",
        "eval_steps": 1000,
        "logging_steps": 10,
        "report_to": "none",
        "dataloader_num_workers": 4 if on_gpu else 0,
        "dataloader_pin_memory": on_gpu,
    }


FIXED: dict[str, Any] = {"remove_unused_columns": False, "label_names": []}
"""What `TrainingArguments` must be for examples that are no rows of a table."""

__all__ = ["FIXED", "SelectorTrainer", "TrainingArguments", "collate", "default_arguments", "drop_unfinished"]
