"""Checks that every C++ file includes only what its layer may include. Exit code 1 lists the violations."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP = ROOT / "cpp"

# A folder may include its own headers and those of the folders named here.
MAY_INCLUDE = {
    "base": set(),
    "quant": {"base"},
    "gguf": {"base", "quant"},
    "convert": {"base", "quant", "gguf"},
    "memory": {"base"},
    "kernels": {"base", "quant"},
    "lola": {"base", "quant", "memory", "kernels"},
    "backend": {"base", "quant", "memory", "kernels", "lola"},
    "models": {"base", "quant", "gguf", "memory", "kernels", "lola", "backend"},
    "sampling": {"base", "kernels"},
    "bindings": {"base", "quant", "gguf", "convert", "memory", "kernels", "lola", "backend", "models", "sampling"},
}

# Headers of the outside world that belong in one place alone: pattern, where it may be, what it is.
CONFINED = [
    (
        re.compile(r"^(imm|arm_neon|x86)\w*\.h$"),
        re.compile(r"_(avx2|avx512|neon)(_\w+)?\.(cpp|h)$|^base/"),
        "intrinsics",
    ),
    (re.compile(r"^pybind11/"), re.compile(r"^bindings/"), "pybind11"),
    (re.compile(r"^(cuda|cublas|nv)\w*"), re.compile(r"^backend/cuda/"), "CUDA"),
]

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def violations(path: Path) -> list[str]:
    name = path.relative_to(CPP).as_posix()
    layer = name.split("/")[0]
    found = []
    for bracket, header in INCLUDE.findall(path.read_text(encoding="utf-8")):
        other = header.split("/")[0]
        if bracket == '"' and other not in MAY_INCLUDE:
            found.append(f"{name}: includes '{header}', which is in no layer")
        elif bracket == '"' and other != layer and other not in MAY_INCLUDE[layer]:
            found.append(f"{name}: {layer} may not include {other} ('{header}')")
        for pattern, place, what in CONFINED:
            if pattern.search(header) and not place.search(name):
                found.append(f"{name}: {what} ('{header}') has no place here")
    return found


def main() -> int:
    files = sorted(path for path in CPP.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})
    problems = [problem for path in files for problem in violations(path)]
    print("\n".join(problems) if problems else f"{len(files)} files keep to their layers")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
