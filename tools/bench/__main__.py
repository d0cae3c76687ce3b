"""Measures this project and llama.cpp side by side, beside the limits of the machine, all in one run.

    python tools/bench --model m.gguf --adapter lola.gguf --peer-python peer/bin/python decode@8192 prefill:512@0

Each argument names a row: KIND[:TOKENS][@DEPTH][xSESSIONS], KIND being
    decode    tokens one by one, with DEPTH tokens before them; x8: eight sessions in one batch, tokens of all together
    prefill   a prompt of TOKENS after DEPTH tokens; also its first and last 1024
    share     decode with LoLA against decode of the plain model at depth 0: what LoLA's memories cost
    sampling  choosing a token and turning it into text, as a share of a decode step
    load      seconds until the first token of a fresh process, and its peak resident memory over the files' size

The sides take turns, round by round, each in its own process; a figure is the median of the rounds. llama.cpp runs
through its C interface with 512-token batches, once with and once without flash attention, and the better counts. Its
cache is filled with random keys and values in place of a real prompt, which costs its attention the same; so is its
time for prompts beyond 4096 tokens put together from chunks at several depths (--whole-prompts: it reads them all).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from load import BusyCore
from rows import Bench, Row, parse_row
from side import Side

DEFAULT_ROWS = ["decode@0", "decode@8192", "prefill:512@0", "prefill:512@8192", "decode@0x8", "sampling", "load"]


def main() -> int:
    options = _parser().parse_args()
    os.environ["LOLA_FORCE_ISA"] = options.isa or ""
    here = Path(__file__).parent
    ours = Side([sys.executable, str(here / "ours.py")])
    peer = Side([options.peer_python, str(here / "peer.py")]) if options.peer_python else None
    bench = Bench(options, ours, peer)
    results = []
    with BusyCore(options.busy_core):
        print(bench.heading(), flush=True)
        for row in options.rows:
            results.append(bench.run(row))
            print(results[-1].markdown(), flush=True)
    if options.json:
        report = {
            "machine": platform.processor() or platform.machine(),
            "options": {name: str(value) for name, value in vars(options).items() if name != "rows"},
            "rows": [result.as_dict() for result in results],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=_row, default=[parse_row(row) for row in DEFAULT_ROWS])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file, read by both sides")
    parser.add_argument("--adapter", type=Path, help="a LoLA adapter for our side; without it: softmax attention")
    parser.add_argument(
        "--peer-python", help="a Python interpreter that has llama-cpp-python; without it: our side only"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="to decode in a round; whole chunks with LoLA")
    parser.add_argument("--isa", help="LOLA_FORCE_ISA of our side, and of the measured limits")
    parser.add_argument("--busy-core", metavar="CPU", help="a busy process beside both sides: on this core, or 'any'")
    parser.add_argument("--whole-prompts", action="store_true", help="llama.cpp too reads all of a long prompt")
    parser.add_argument("--states", type=Path, help="a folder that keeps our filled sessions for later runs")
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    lola = parser.add_argument_group("LoLA", "what is not given comes from the adapter")
    lola.add_argument("--window-size", type=int)
    lola.add_argument("--chunk-size", type=int)
    lola.add_argument("--sparse-size", type=int)
    lola.add_argument("--sparse-scope", choices=["head", "group"])
    lola.add_argument("--policy")
    lola.add_argument("--pair-type", choices=["f32", "f16", "q8_0"])
    return parser


def _row(text: str) -> Row:
    try:
        return parse_row(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
