"""Command line of the converters: convert.py hf | lolcats | merge | split."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from lola_cpp._core import LolaError
from lola_cpp.convert import adapter, hf
from lola_cpp.convert.lolcats import convert_lolcats
from lola_cpp.convert.merge import LORA_TYPES, merge_adapter, split_adapter

# option -> field of Settings
_SETTING_OPTIONS = {
    "feature-map": ("feature_map", str, adapter.FEATURE_MAPS),
    "mixing": ("mixing", str, adapter.MIXINGS),
    "window": ("window_size", int, None),
    "chunk": ("chunk_size", int, None),
    "sparse": ("sparse_size", int, None),
    "scope": ("sparse_scope", str, adapter.SCOPES),
    "policy": ("policy", str, adapter.POLICIES),
    "kappa": ("kappa", float, None),
    "lora-alpha": ("lora_alpha", float, None),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one conversion; the exit status is 0, or 1 after an error message."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (LolaError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """--settings FILE and an option for each setting that is often changed."""
    parser.add_argument("--settings", type=Path, help="JSON file of settings; options override it")
    for option, (field, kind, choices) in _SETTING_OPTIONS.items():
        parser.add_argument(f"--{option}", dest=field, type=kind, choices=choices)


def read_setting_options(options: argparse.Namespace) -> adapter.Settings:
    """The settings that add_setting_options' options ask for."""
    settings = adapter.read_settings(options.settings) if options.settings else adapter.Settings()
    fields = [field for field, _, _ in _SETTING_OPTIONS.values()]
    given = {field: getattr(options, field) for field in fields if getattr(options, field) is not None}
    return dataclasses.replace(settings, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convert.py", description="Converts models and adapters to GGUF.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("hf", help="Hugging Face folder -> GGUF base model")
    command.add_argument("folder", type=Path)
    command.add_argument("--type", choices=sorted(hf.TYPES), default="q8_0", help="format of the matrices")
    command.add_argument("--name", help="the model's name in the file; the folder's if not given")
    command.add_argument("--pre", help="name of the pre-tokenizer, if the tokenizer's own is not known")
    _finish(command, _run_hf)

    command = commands.add_parser("lolcats", help="LoLCATs checkpoints -> LoLA adapter")
    command.add_argument("checkpoints", type=Path, nargs="+")
    command.add_argument("--base", type=Path, required=True, help="the base model, in any quantization")
    command.add_argument("--type", choices=sorted(adapter.TYPES), default="f32", help="format of the matrices")
    add_setting_options(command)
    _finish(command, _run_lolcats)

    command = commands.add_parser("merge", help="base model + LoLA adapter -> one file")
    command.add_argument("base", type=Path)
    command.add_argument("adapter", type=Path)
    command.add_argument("--lora-type", choices=sorted(LORA_TYPES), help="format of the matrices the LoRA changes")
    _finish(command, _run_merge)

    command = commands.add_parser("split", help="the LoRA of a LoLA adapter -> plain llama.cpp LoRA")
    command.add_argument("adapter", type=Path)
    _finish(command, lambda options: split_adapter(options.adapter, options.output))
    return parser


def _finish(command: argparse.ArgumentParser, run: object) -> None:
    command.add_argument("-o", "--output", type=Path, required=True)
    command.set_defaults(run=run)


def _run_hf(options: argparse.Namespace) -> None:
    hf.convert_folder(
        options.folder,
        options.output,
        kind=options.type,
        name=options.name,
        pre=options.pre,
        progress=sys.stderr.isatty(),
    )


def _run_lolcats(options: argparse.Namespace) -> None:
    settings = read_setting_options(options)
    convert_lolcats(options.checkpoints, options.base, options.output, settings=settings, kind=options.type)


def _run_merge(options: argparse.Namespace) -> None:
    progress = sys.stderr.isatty()
    merge_adapter(options.base, options.adapter, options.output, lora_type=options.lora_type, progress=progress)
