"""A whole distillation: data, transfer, LoRA, report and adapter; goes on where a killed run stopped."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lola_cpp._core import DeviceError, UsageError
from lola_cpp.distill.capacity import check_capacity
from lola_cpp.distill.data import Sequences, read_sequences
from lola_cpp.distill.export import export_adapter
from lola_cpp.distill.lora import Student
from lola_cpp.distill.options import Options
from lola_cpp.distill.teacher import WEIGHTS, Teacher
from lola_cpp.distill.transfer import Transfer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def distill(options: Options, output: Path, *, kind: str = "f32") -> Student:
    """Trains what options.folder does not hold yet, writes the adapter and report.json, and returns the student.

    Raises:
        UsageError: options, data or a checkpoint that do not fit.
        FormatError: a damaged file.
        DeviceError: the device is missing or too small.
    """
    teacher = open_teacher(options)
    data = open_data(options, teacher)
    student = train(options, teacher, data)
    export_adapter(student, output, kind=kind)
    return student


def open_teacher(options: Options) -> Teacher:
    if options.weights not in WEIGHTS or options.dtype not in DTYPES:
        raise UsageError(f"found weights {options.weights!r} and dtype {options.dtype!r}, wanted {WEIGHTS}, {DTYPES}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device: found {options.device!r}, but this PyTorch sees no GPU")
    teacher = Teacher(options.model, options.device, DTYPES[options.dtype], options.weights)
    if teacher.sliding_window is not None and options.length > teacher.sliding_window:
        raise UsageError(
            f"length: found {options.length}, wanted at most {teacher.sliding_window}, the teacher's own sliding window"
        )
    check_capacity(options, teacher.base, *teacher.weight_bytes())
    return teacher


def open_data(options: Options, teacher: Teacher) -> Sequences:
    return read_sequences(
        options.data,
        options.model,
        length=options.length,
        vocab_size=teacher.base.vocab_size,
        seed=options.seed,
        progress=options.progress,
    )


def train(options: Options, teacher: Teacher, data: Sequences) -> Student:
    """Both stages, and report.json with what they reached on the held-out sequences."""
    transfer = Transfer.start(options, teacher)
    transfer.train(data)
    for value in transfer.tensors().values():
        value.requires_grad_(options.lora_maps)
    report = {"attention_error": {str(i): error for i, error in transfer.report(data).items()}}
    student = Student.start(options, teacher, transfer.maps)
    if options.lora_steps:
        report["loss_before_lora"] = student.report(data)
        student.train(data)
        report["loss"] = student.report(data)
    else:
        student.updates = {}
    (options.folder / "report.json").write_text(json.dumps(report, indent=1))
    return student
