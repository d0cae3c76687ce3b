"""The command `lola-cpp`; each subcommand has a file of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from .._core import LolaError
from . import bench, calibrate, chat, demo, doctor, eval, info, inspect, run

_COMMANDS = (run, chat, info, inspect, bench, eval, calibrate, demo, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (LolaError, OSError) as error:
        print(f"lola-cpp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlola-cpp: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lola-cpp", description="Linear-attention language models on GGUF weights.")
    parser.add_argument("--version", action="version", version=f"lola-cpp {__version__}")
    names = " | ".join(command.__name__.rsplit(".", 1)[-1] for command in _COMMANDS)
    commands = parser.add_subparsers(required=True, metavar=names)
    for command in _COMMANDS:
        command.add(commands)
    return parser
