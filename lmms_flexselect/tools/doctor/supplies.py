"""Whether what a config loads is here or can be had: weights, data sets, tasks, disk, the hub's token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmms_flexselect.tools.doctor.checkpoints import Checkpoint
from lmms_flexselect.tools.doctor.datasets import DataSet
from lmms_flexselect.tools.doctor.finding import NOTE, OK, PROBLEM, Finding
from lmms_flexselect.tools.doctor.machine import Machine
from lmms_flexselect.tools.doctor.plan import Planned

# Weights are published in half precision.
_PUBLISHED_ITEM = 2
_GB = 1000**3


def of_weights(machine: Machine, runs: Sequence[Planned]) -> Iterator[Finding]:
    """Whether checkpoints and selectors are here."""
    sizes = {checkpoint: parameters for run in runs for checkpoint, parameters in _loaded(run)}
    here = [checkpoint for checkpoint in sizes if checkpoint.here]
    if len(here) > 1 and len(here) == len(sizes):
        yield Finding(OK, "weights", f"{len(here)} checkpoints, all here")
        return
    for checkpoint, parameters in sizes.items():
        if checkpoint.state == "absent":  # told of as a run that cannot be
            continue
        size = f"{parameters * _PUBLISHED_ITEM / _GB:.1f} GB" if parameters else "size not known"
        if checkpoint.here:
            yield Finding(OK, "weights", f"{checkpoint.name}: here")
        elif checkpoint.state == "folder":
            text = f"{checkpoint.name}: lacks {len(checkpoint.missing)} weight file(s), e.g. {checkpoint.missing[0]}"
            yield Finding(PROBLEM, "weights", text, "copy them there")
        elif checkpoint.state in ("published", "partial"):
            state = f"lacks {len(checkpoint.missing)} file(s)" if checkpoint.state == "partial" else "not here"
            fetch = f"hf download {checkpoint.name}"
            if machine.offline:
                text = f"{checkpoint.name}: {state} ({size}), and HF_HUB_OFFLINE is set"
                yield Finding(PROBLEM, "weights", text, f"{fetch}, where the hub can be reached")
            else:
                text = f"{checkpoint.name}: {state}, to be downloaded ({size})"
                yield Finding(NOTE, "weights", text, f"{fetch}, or the run does it")


def of_data(machine: Machine, sets: Sequence[DataSet], unknown: Sequence[str] = ()) -> list[Finding]:
    """Whether the data sets are here, or can be fetched."""
    found = []
    for each in sets:
        if not each.lacking:
            found.append(Finding(OK, "data", f"{each.title}: in {each.folder}"))
            continue
        more = f" (and {len(each.lacking) - 1} more)" if len(each.lacking) > 1 else ""
        cannot = machine.offline or (each.gated and not machine.token)
        size = f"{each.gigabytes:.0f} GB"
        remedy = f"{each.command} ({size})"
        if each.gated and not machine.token:
            remedy = f"accept its terms on the hub, hf auth login, then {remedy}"
        elif machine.offline:
            remedy = f"{remedy} where the hub can be reached: HF_HUB_OFFLINE is set here"
        found.append(Finding(PROBLEM if cannot else NOTE, "data", f"{each.title}: {each.lacking[0]}{more}", remedy))
    if unknown:
        found.append(Finding(NOTE, "data", f"not known here, so not looked for: {', '.join(unknown)}"))
    return found


def of_tasks(unknown: Sequence[str]) -> list[Finding]:
    """Tasks that lmms-eval does not find."""
    if not unknown:
        return []
    remedy = "correct the name, or give doctor the --include_path that the run will get"
    return [Finding(PROBLEM, "tasks", f"lmms-eval finds no {', '.join(unknown)}", remedy)]


def of_disk(machine: Machine, runs: Sequence[Planned], sets: Sequence[DataSet]) -> Finding:
    """Whether what has to be downloaded fits; archives of videos need their size twice while they are unpacked."""
    checkpoints = {c.name: p for run in runs for c, p in _loaded(run) if c.state in ("published", "partial")}
    wanted = sum(checkpoints.values()) * _PUBLISHED_ITEM + sum(
        2 * each.gigabytes * _GB for each in sets if each.lacking
    )
    text = f"{machine.disk / _GB:.0f} GB free in {machine.home}"
    if not wanted:
        return Finding(OK, "disk", f"{text}, nothing to download" if runs else text)
    text += f", {wanted / _GB:.0f} GB to download and unpack"
    if wanted <= machine.disk:
        return Finding(OK, "disk", text)
    return Finding(PROBLEM, "disk", text, "make room, or set HF_HOME to a larger disk")


def of_token(machine: Machine, sets: Sequence[DataSet]) -> Finding:
    """Whether the hub knows who is asking."""
    if machine.token:
        return Finding(OK, "hub", "a token is set")
    gated = ", ".join(each.title for each in sets if each.gated and each.lacking)
    needs = f"needed for {gated}" if gated else "needed only for gated repositories"
    return Finding(NOTE, "hub", f"no token ({needs})", "hf auth login" if gated else "")


def _loaded(run: Planned) -> Iterator[tuple[Checkpoint, int]]:
    """What a run loads, and its parameters."""
    for checkpoint, parameters in ((run.checkpoint, run.parameters), (run.selector, run.selector_parameters)):
        if checkpoint is not None:
            yield checkpoint, parameters
