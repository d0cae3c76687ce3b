"""What was trained -> a LoLA adapter."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lola_cpp.convert import adapter
from lola_cpp.distill.lora import Student
from lola_cpp.distill.options import with_rank


def export_adapter(student: Student, output: Path, *, kind: str = "f32") -> None:
    """Writes the maps and the updates for every quantization of the teacher."""
    layers = {
        i: adapter.LayerMaps(_array(maps.query_map), _array(maps.key_map), _array(maps.window_logits))
        for i, maps in student.maps.items()
    }
    lora = {
        (i, name): adapter.Lora(_array(update.a), _array(update.b))
        for i, updates in student.updates.items()
        for name, update in updates.items()
    }
    adapter.write_adapter(output, student.teacher.base, with_rank(student.options), layers, lora, kind=kind)


def _array(value: Tensor) -> adapter.Floats:
    array: adapter.Floats = value.detach().float().cpu().contiguous().numpy()
    return array
