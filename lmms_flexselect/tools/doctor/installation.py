"""Whether the installation works, and what there is to run on: from what was seen of a machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from packaging.requirements import Requirement

from lmms_flexselect.cost.memory import gib
from lmms_flexselect.manifests import manifests
from lmms_flexselect.tools.doctor.finding import NOTE, OK, PROBLEM, Finding
from lmms_flexselect.tools.doctor.machine import Machine

# Of which versions are told though nothing is wrong.
_TOLD = ("lmms-eval", "torch", "transformers", "accelerate", "av")


def of_machine(machine: Machine) -> list[Finding]:
    """Whether the installation works; what there is to run on."""
    installed = [*_packages(machine), _plugin(machine)]
    if machine.broken:  # what needs the broken would be blamed in its place
        return installed
    return [*installed, *_hardware(machine), *decoding(machine, {"pyav"})]


def decoding(machine: Machine, decoders: Iterable[str]) -> Iterator[Finding]:
    """Whether video decoders work."""
    for decoder in sorted(decoders):
        complaint = machine.decoders.get(decoder, "not known")
        if complaint is None:
            yield Finding(OK, "video", f"{decoder} decodes H.264")
        else:
            fix = f"pip install --force-reinstall {'av' if decoder == 'pyav' else decoder}"
            yield Finding(PROBLEM, "video", f"{decoder}: {complaint}", fix)


def _packages(machine: Machine) -> Iterator[Finding]:
    problems = [*_versions(machine), *_broken(machine)]
    told = ", ".join(f"{name} {machine.packages[name]}" for name in _TOLD if machine.packages.get(name))
    if not problems:
        yield Finding(OK, "packages", f"Python {machine.python}, {told}")
    yield from problems


def _versions(machine: Machine) -> Iterator[Finding]:
    for text in machine.requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        have = machine.python if requirement.name == "python" else machine.packages.get(requirement.name)
        if have is None:
            yield Finding(PROBLEM, "packages", f"{requirement.name} is not installed", _install(requirement))
        elif not requirement.specifier.contains(have, prereleases=True):
            wanted = f"{requirement.name} {have}: this package wants {requirement.specifier}"
            yield Finding(PROBLEM, "packages", wanted, _install(requirement))


def _install(requirement: Requirement) -> str:
    if requirement.name == "python":
        return f"make a new environment with Python {requirement.specifier}"
    return f"pip install '{requirement.name}{requirement.specifier}'"


def _broken(machine: Machine) -> Iterator[Finding]:
    for name, reason in machine.broken.items():
        fix = f"pip install --force-reinstall {name.replace('_', '-')}"
        yield Finding(PROBLEM, "packages", f"{name} cannot be imported: {reason}", fix)


def _plugin(machine: Machine) -> Finding:
    if machine.registered is None:
        return Finding(PROBLEM, "plugin", "lmms-eval cannot be asked for its models", "mend the packages first")
    own = {manifest.model_id for manifest in manifests()}
    if missing := sorted(own - machine.registered):
        fix = "reinstall lmms-flexselect; if that is of no use, another plugin of lmms-eval's fails before it"
        return Finding(PROBLEM, "plugin", f"lmms-eval does not find {', '.join(missing)}", fix)
    return Finding(OK, "plugin", f"lmms-eval finds {', '.join(sorted(own))}")


def _hardware(machine: Machine) -> Iterator[Finding]:
    if machine.gpu_complaint:
        fix = "install a torch that fits the driver, see pytorch.org/get-started"
        yield Finding(NOTE, "GPU", machine.gpu_complaint, fix)
    elif machine.gpus:
        kinds = ", ".join(f"{g.name} {gib(g.free)} of {gib(g.total)} free" for g in machine.gpus[:2])
        more = f" and {len(machine.gpus) - 2} more" if len(machine.gpus) > 2 else ""
        yield Finding(OK, "GPU", kinds + more)
    else:
        yield Finding(NOTE, "GPU", "none: only tiny models run here")
    yield Finding(OK, "CPU", f"{machine.cores} cores, {gib(machine.memory)} of memory free")
