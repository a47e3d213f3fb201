"""A model of this package as lmms-eval builds it, for the tools that ask it questions outside of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.spec import families, load
from lmms_flexselect.options import check_choice


def parse_model_args(text: str) -> dict[str, Any]:
    """``--model_args`` by name, numbers as numbers.

    Raises
    ------
    OptionError
        If the text is not ``name=value,name=value``.
    """
    from lmms_eval.utils import simple_parse_args_string

    try:
        return simple_parse_args_string(text)
    except ValueError:
        raise OptionError(f"model_args={text}: must be name=value,name=value") from None


def build_model(name: str, arguments: Mapping[str, Any]) -> Any:
    """The model, loaded.

    Parameters
    ----------
    name
        As after lmms-eval's ``--model``.
    arguments
        Model arguments.

    Raises
    ------
    FlexSelectError
        If there is no such model, or an argument does not fit.
    """
    models = {model.name: model for spec in families().values() for model in spec.models}
    check_choice("model", name, models)
    return load(models[name].class_path)(**arguments)
