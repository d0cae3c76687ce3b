"""The device that models run on in tests: LOLA_TEST_DEVICE, cpu where it is not set."""

from __future__ import annotations

import os

from lola_cpp import Model

DEVICE = os.environ.get("LOLA_TEST_DEVICE", "cpu")


def why_missing(device: str) -> str | None:
    """Why models cannot run there; None where they can."""
    try:
        Model.default(device=device)
    except RuntimeError as error:
        return str(error)
    return None
