"""Command line of the distillation."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lola_cpp._core import LolaError
from lola_cpp.convert.adapter import TYPES
from lola_cpp.convert.cli import add_setting_options, read_setting_options
from lola_cpp.convert.optional import require


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one distillation; the exit status is 0, or 1 after an error message."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (LolaError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from the last checkpoint in '{options.folder}'", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill.py", description="Distils a Llama, Mistral, Qwen2 or Qwen3 model into a LoLA adapter."
    )
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="text files, folders, JSON lines")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the adapter")
    parser.add_argument("--folder", type=Path, help="checkpoints and report; default: OUTPUT without its ending")
    parser.add_argument("--type", choices=sorted(TYPES), default="f32", help="format of the adapter's matrices")
    add_setting_options(parser)
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, else float32")
    parser.add_argument(
        "--weights", choices=("device", "host", "disk"), default="device", help="where layers wait for their turn"
    )
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step")
    parser.add_argument("--micro-batch", type=int, default=1, help="of them on the card at once")
    parser.add_argument("--transfer-steps", type=int, default=2000)
    parser.add_argument("--transfer-rate", type=float, default=1e-2)
    parser.add_argument("--maps", type=Path, help="transfer.pt of another run: its maps, and no transfer here")
    parser.add_argument("--lora-steps", type=int, default=1000, help="0: no LoRA")
    parser.add_argument("--lora-rate", type=float, default=1e-4)
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--lora-cache", type=int, nargs="+", default=[0], help="pairs in the sparse cache, for LoRA")
    parser.add_argument(
        "--lora-window",
        type=int,
        nargs="+",
        default=[],
        help="tokens of the window, for LoRA; default: --window's. Micro-batches take turns with several numbers",
    )
    parser.add_argument(
        "--lora-target", choices=("text", "teacher"), default="text", help="next tokens, or the teacher's logits"
    )
    parser.add_argument("--lora-maps", action="store_true", help="the maps go on learning with LoRA")
    parser.add_argument("--replay", action="store_true", help="LoRA by CUDA graphs: faster where the model is small")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _run(given: argparse.Namespace) -> None:
    torch = require("torch", extra="distill")
    require("transformers", extra="distill")
    from lola_cpp.distill.options import Options
    from lola_cpp.distill.run import distill

    torch.set_flush_denormal(True)  # sharp attention makes many: CPUs are several times slower with them
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = given.folder or given.output.with_suffix("")
    names = "model weights length batch micro_batch transfer_steps transfer_rate maps lora_steps lora_rate lora_rank "
    names += "lora_target lora_maps replay checkpoint_every seed"
    options = Options(
        data=tuple(given.data),
        folder=folder,
        settings=read_setting_options(given),
        device=device,
        dtype=given.dtype or ("bfloat16" if device.startswith("cuda") else "float32"),
        progress=True,
        lora_cache=tuple(given.lora_cache),
        lora_window=tuple(given.lora_window),
        **{name: getattr(given, name) for name in names.split()},
    )
    distill(options, given.output, kind=given.type)
    _print_report(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    print(f"wrote '{given.output}'")


def _print_report(report: dict[str, dict[str, float]]) -> None:
    print("relative error of the attention on held-out text, by layer")
    for layer, error in report["attention_error"].items():
        print(f"  {layer:>3}  {error:.4f}")
    for name, title in (("loss_before_lora", "before LoRA"), ("loss", "after LoRA")):
        if name in report:
            losses = ", ".join(f"{who} {loss:.4f}" for who, loss in report[name].items())
            print(f"held-out loss {title}: {losses}")
