"""Progress bars of evaluations."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int, what: str) -> tqdm[None]:
    return tqdm(total=total, desc=what, unit=" tokens", unit_scale=True, leave=False, file=sys.stderr, disable=None)
