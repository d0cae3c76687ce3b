"""The device that models run on in tests: LOLA_TEST_DEVICE, cpu where it is not set.

With LOLA_TEST_GPU_LAYERS only so many layers run there, and the others on the CPU.
"""

from __future__ import annotations

import os

from lola_cpp import Model

DEVICE = os.environ.get("LOLA_TEST_DEVICE", "cpu")
GPU_LAYERS = int(text) if (text := os.environ.get("LOLA_TEST_GPU_LAYERS")) else None
PASS_TOKENS = 4096 if DEVICE == "cuda" and GPU_LAYERS is None else 512  # the most that a pass takes


def why_missing(device: str) -> str | None:
    """Why models cannot run there; None where they can."""
    try:
        Model.default(device=device)
    except RuntimeError as error:
        return str(error)
    return None
