"""Imports of the packages that only conversion needs."""

from __future__ import annotations

import importlib
from typing import Any


def require(name: str, *, extra: str = "convert") -> Any:
    """Imports an optional package by name; `extra` is what brings it.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise ImportError(
            f"this needs the package {name!r}, which is not installed: pip install 'lola_cpp[{extra}]'"
        ) from error
