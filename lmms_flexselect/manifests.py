"""Entry point ``lmms_eval.models``: which model names this plugin adds.

Imports nothing but lmms-eval's registry and the families' specs, and these only when called: lmms-eval loads this
module while it is itself being imported, and an exception here would silently unregister every plugin after this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> list[ModelManifest]:
    """The model classes of this plugin, by the names that ``lmms-eval --model`` takes."""
    from lmms_eval.models.registry_v2 import ModelManifest

    from lmms_flexselect.families.spec import families

    return [
        ModelManifest(model_id=model.name, simple_class_path=_dotted(model.simple), chat_class_path=_dotted(model.chat))
        for family in families().values()
        for model in family.models
    ]


def _dotted(path: str | None) -> str | None:
    return None if path is None else path.replace(":", ".")
