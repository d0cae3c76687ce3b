"""Writes cpp/quant/iq_tables.h, the codebooks of the IQ formats, from those of the `gguf` package.

Usage: python tools/generate_iq_tables.py [path]; without a path, to standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import quants

HEADER = """\
// The codebooks of the IQ formats. Written by tools/generate_iq_tables.py; do not edit.
// An entry of a grid is 8 (or 4) signed bytes, the first in the lowest bits.
#pragma once

#include <cstdint>

namespace lola {

"""
FOOTER = "}  // namespace lola\n"


def table(comment: str, declaration: str, values: Iterable[str], per_line: int) -> str:
    """One C++ array, `per_line` values a line."""
    items = list(values)
    lines = [", ".join(items[start : start + per_line]) for start in range(0, len(items), per_line)]
    body = ",\n".join(f"    {line}" for line in lines)
    return f"// {comment}\ninline constexpr {declaration}[{len(items)}] = {{\n{body},\n}};\n\n"


def grid_table(comment: str, name: str, quant: Any) -> str:
    """The grid [entries, 8 or 4] of a class of gguf.quants, one entry a number."""
    quant.init_grid()
    entries = quant.grid.reshape(quant.grid_shape).astype(np.int8)
    bits = 8 * entries.shape[1]
    words = entries.view(f"<u{bits // 8}").ravel()
    values = (f"0x{word:0{bits // 4}x}" for word in words)
    return table(comment, f"uint{bits}_t {name}", values, per_line=4 if bits == 64 else 8)


def iq_tables() -> str:
    """The text of iq_tables.h."""
    signs = (f"0x{byte:02x}" for byte in quants.IQ2_XXS.ksigns)
    levels = (str(value) for value in quants.IQ4_NL.kvalues)
    return (
        HEADER
        + table("The levels of IQ4_NL and IQ4_XS.", "int8_t kIQ4Levels", levels, per_line=16)
        + table(
            "The signs of 8 weights, bit i negating weight i, from the 7 bits that are stored: the\n"
            "// eighth makes the number of negative weights even.",
            "uint8_t kIQSigns",
            signs,
            per_line=16,
        )
        + grid_table("Magnitudes.", "kIQ2XXSGrid", quants.IQ2_XXS)
        + grid_table("Magnitudes.", "kIQ2XSGrid", quants.IQ2_XS)
        + grid_table("Magnitudes.", "kIQ2SGrid", quants.IQ2_S)
        + grid_table("Magnitudes.", "kIQ3XXSGrid", quants.IQ3_XXS)
        + grid_table("Magnitudes.", "kIQ3SGrid", quants.IQ3_S)
        + grid_table("-1, 0 and 1; for IQ1_S and IQ1_M.", "kIQ1Grid", quants.IQ1_S)
        + FOOTER
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path)
    path = parser.parse_args().path
    if path is None:
        sys.stdout.write(iq_tables())
    else:
        path.write_text(iq_tables(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
