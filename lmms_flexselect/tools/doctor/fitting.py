"""Whether the runs of a config fit this machine: options, memory, attention, decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import shorten

from lmms_flexselect.cost.memory import GIB, gib
from lmms_flexselect.tools.doctor.finding import NOTE, OK, PROBLEM, Finding
from lmms_flexselect.tools.doctor.installation import decoding
from lmms_flexselect.tools.doctor.machine import Gpu, Machine
from lmms_flexselect.tools.doctor.plan import Planned

# A model of more parameters answers no benchmark on a CPU within a lifetime.
CPU_PARAMETERS = 500_000_000
_USABLE = 0.95  # of a GPU's memory, at best
_WIDTH = 160


def of_config(machine: Machine, runs: Sequence[Planned]) -> list[Finding]:
    """Whether every run of a config can be run here."""
    ours = [run for run in runs if run.memory is not None]
    foreign = sorted({run.model for run in runs if run.foreign})
    return [
        *(Finding(NOTE, "model", f"{name} is not of this package: nothing is known of it here") for name in foreign),
        *_options(runs),
        *_memory(machine, ours),
        *_kernels(machine, {run.kernel for run in ours}),
        *decoding(machine, {run.decoder for run in ours} - {"pyav", "image"}),
    ]


def _options(runs: Sequence[Planned]) -> Iterator[Finding]:
    """What would be run; several runs of a config by their number."""
    wrong: dict[str, tuple[int, Planned]] = {}
    for number, run in enumerate(runs, start=1):
        if run.complaint is not None:
            wrong.setdefault(run.complaint, (number, run))
    right = [run for run in runs if run.memory is not None]
    if len(right) == 1:
        yield Finding(OK, "run", f"{right[0].model}: {right[0].summary}")
    elif right:
        models = ", ".join(dict.fromkeys(run.model for run in right))
        yield Finding(OK, "run", f"{len(right)} runs of {models}")
    for complaint, (number, run) in wrong.items():
        fix = "correct it in the config"
        if run.checkpoint is not None and run.checkpoint.state == "absent":
            fix = f"hf download {run.checkpoint.name}, or name the folder it is in"
        elif run.selector is not None and run.selector.state == "absent":
            fix = "train it (a generated config's first lines say how), or hf download it"
        which = f"number {number}: " if len(runs) > 1 else ""
        yield Finding(PROBLEM, "run", shorten(which + complaint, _WIDTH, placeholder=" …"), fix)


def _memory(machine: Machine, runs: Sequence[Planned]) -> Iterator[Finding]:
    if not runs:
        return
    if not machine.gpus:
        yield _on_cpu(machine, runs)
        return
    smallest = min(machine.gpus, key=lambda gpu: gpu.free)
    # The hardest run: where a copy is spread its need is shared.
    worst = max(runs, key=lambda run: _on_each(run, machine.gpus))
    assert worst.memory is not None
    each, spread = _on_each(worst, machine.gpus), worst.spread and len(machine.gpus) > 1
    where = f"on each of {len(machine.gpus)} GPUs" if spread else "on one GPU"
    text = f"about {gib(each)} {where} ({worst.memory.words()}); {gib(smallest.free)} free"
    if each <= smallest.free:
        yield Finding(OK, "memory", text)
        return
    enough = next((n for n in range(1, 65) if worst.memory.on_each(n) <= smallest.total * _USABLE), None)
    if each <= smallest.total * _USABLE:
        fix = "end what else runs on the GPU (nvidia-smi lists it)"
    elif enough is not None and enough <= len(machine.gpus):
        fix = "device_map=auto spreads one copy over all GPUs (start one process)"
    else:
        fix = _smaller(worst, f"{enough} such GPUs with device_map=auto" if enough else "")
    yield Finding(PROBLEM, "memory", text, fix)


def _on_each(run: Planned, gpus: Sequence[Gpu]) -> int:
    assert run.memory is not None
    return run.memory.on_each(len(gpus) if run.spread else 1)


def _smaller(run: Planned, otherwise: str) -> str:
    assert run.memory is not None
    least = -(-run.memory.total // GIB)
    choices = [f"a GPU of {least} GiB", otherwise, "fewer frames or a smaller max_pixels"]
    return ", or ".join(choice for choice in choices if choice)


def _on_cpu(machine: Machine, runs: Sequence[Planned]) -> Finding:
    need, largest = max(
        ((run.memory.total, run) for run in runs if run.memory is not None),
        key=lambda pair: (pair[1].parameters > CPU_PARAMETERS, pair[0]),
    )
    if largest.parameters > CPU_PARAMETERS:
        billions = f"{largest.parameters / 1e9:.1f} billion parameters"
        remedy = f"run it where a GPU has {-(-need // GIB)} GiB free"
        if largest.spread:
            remedy = f"run it where there are {_node(largest)}"
        return Finding(PROBLEM, "memory", f"{billions} need about {gib(need)} of a GPU, and there is none", remedy)
    text = f"{largest.parameters / 1e6:.1f} million parameters run on the CPU: about {gib(need)}"
    if need > machine.memory:
        return Finding(PROBLEM, "memory", f"{text}; {gib(machine.memory)} are free", "end what else runs here")
    return Finding(OK, "memory", text)


def _node(run: Planned) -> str:
    assert run.memory is not None
    count = next(n for n in range(1, 65) if run.memory.on_each(n) <= 80 * GIB * _USABLE)
    return f"{count} GPUs of 80 GiB"


def _kernels(machine: Machine, kernels: set[str]) -> Iterator[Finding]:
    for kernel in sorted(kernels):
        complaint = machine.kernels.get(kernel, "transformers does not know it")
        if complaint is None:
            yield Finding(OK, "attention", kernel)
        else:
            fix = "pip install 'flash-attn>=2.6' (a CUDA toolkit builds it), or attn_implementation=sdpa"
            yield Finding(PROBLEM, "attention", f"{kernel}: {complaint}", fix)
