"""matplotlib for pictures in files, or one line about where to get it."""

from __future__ import annotations

from typing import Any

from lmms_flexselect.errors import FlexSelectError


def pyplot() -> Any:
    """``matplotlib.pyplot`` on a backend without windows; commands call it before they measure anything.

    Raises
    ------
    FlexSelectError
        If matplotlib is missing.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise FlexSelectError(f"pictures need matplotlib: pip install 'lmms-flexselect[demo]' ({error})") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
