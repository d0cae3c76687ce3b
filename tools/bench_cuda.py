#!/usr/bin/env python3
"""Measures the engine on a GPU: the table "Speed on a GPU" of docs/benchmarks.md.

    python tools/make_random_model.py --preset llama-3.1-8b -o q4.gguf --adapter lola.gguf --lora-rank 0
    python tools/bench_cuda.py ROWS -m q4.gguf -a lola.gguf

ROWS, any of (all where none is named): decode depth prefill sessions fork kernels tiny. Needs torch, for the limits of
the card and the times of single kernels. Every row is timed from outside, through the Python API, on the host's clock.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lola_cpp import Model, Session
from lola_cpp._core import GgufFile
from lola_cpp.passes import advance

PASS = 4096  # tokens of a pass, the prompt of the profile


def tensors(path: Path) -> dict[str, tuple[int, int]]:
    """Elements and bytes of every matrix."""
    return {
        name: (shape[0] * shape[1], size) for name, _, shape, size in GgufFile(str(path)).tensors() if len(shape) > 1
    }


def bytes_of(path: Path, *names: str) -> int:
    return sum(size for name, (_, size) in tensors(path).items() if name.endswith(names))


def limits() -> tuple[float, float]:
    """Bytes per second of a copy, read and written, and operations per second of a bfloat16 product."""
    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))

    def seconds(action: Callable[[], object]) -> float:
        times = []
        for _ in range(8):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            action()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[2:])

    copied = 2 * source.numel() / seconds(lambda: target.copy_(source))
    multiplied = 2 * 8192**3 / seconds(lambda: a @ b)
    return copied, multiplied


class Bench:
    def __init__(self, path: Path, adapter: Path, bandwidth: float, rate: float) -> None:
        begin = time.perf_counter()
        self.path, self.bandwidth, self.rate = path, bandwidth, rate
        self.model = Model(path, adapter, device="cuda")
        self.random = random.Random(0)
        self.options: Any = {"window_size": 64, "chunk_size": 64, "sparse_size": 192, "sparse_scope": "group"}
        self.decode_bytes = sum(size for _, size in tensors(path).values()) - bytes_of(path, "token_embd.weight")
        print(f"{path.name}: {self.model.info.backend}, loaded in {time.perf_counter() - begin:.1f} s")
        print(f"  a token reads {self.decode_bytes / 1e9:.2f} GB of weights: {bandwidth / self.decode_bytes:.0f} tok/s")

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(self.model.info.vocabulary) for _ in range(count)]

    def filled(self, depth: int) -> Session:
        session = self.model.session(**self.options)
        session.append(self.tokens(max(1, depth)))
        return session

    def step(self, sessions: list[Session]) -> None:
        for session in sessions:
            session.pending.append(self.random.randrange(self.model.info.vocabulary))
        advance(sessions)

    def per_second(self, sessions: list[Session], steps: int) -> float:
        for _ in range(3):
            self.step(sessions)
        begin = time.perf_counter()
        for _ in range(steps):
            self.step(sessions)
        return steps * len(sessions) / (time.perf_counter() - begin)

    def greedy(self, session: Session, count: int) -> float:
        list(session.generate(self.tokens(1), max_tokens=3, stop_at_end=False))
        begin = time.perf_counter()
        list(session.generate(max_tokens=count, stop_at_end=False))
        return count / (time.perf_counter() - begin)

    def decode(self) -> None:
        found = statistics.median(self.greedy(self.filled(1), 56) for _ in range(5))
        share = found * self.decode_bytes / self.bandwidth
        print(f"  decode, empty (56 tokens, median of 5): {found:.1f} tok/s = {share:.0%} of the floor", flush=True)

    def depth(self, depths: list[int]) -> None:
        for depth in depths:
            session = self.filled(depth)
            found = statistics.median(self.greedy(session, 128) for _ in range(3))
            print(f"  decode at {depth:,}: {found:.1f} tok/s", flush=True)

    def prefill(self, counts: list[int]) -> None:
        self.filled(PASS)
        for count in counts:
            times = []
            for _ in range(3 if count < 10000 else 1):
                session, ids = self.model.session(**self.options), self.tokens(count)
                begin = time.perf_counter()
                session.append(ids)
                times.append(time.perf_counter() - begin)
            print(f"  prefill of {count:,}: {count / statistics.median(times):,.0f} tok/s", flush=True)

    def sessions(self, cases: list[tuple[int, int]]) -> None:
        """Sessions are spread over the 64 places of a chunk; 64 steps pass one boundary of each."""
        for depth, count in cases:
            filled = self.filled(depth)
            batch = [filled.fork() for _ in range(count)]
            for i, session in enumerate(batch):
                session.pending.extend(self.tokens(1 + i * 64 // count))
            advance(batch)
            found = self.per_second(batch, 64)
            print(
                f"  {count} sessions at {depth:,}: {found:,.0f} tok/s, {1000 * count / found:.2f} ms a step", flush=True
            )
        free, each = torch.cuda.mem_get_info()[0], self.model.session_bytes(**self.options)
        print(f"  a session takes {each / 1e6:.1f} MB; {free // each} more fit in the {free / 1e9:.1f} GB free")

    def fork(self) -> None:
        session = self.filled(300)
        forks = [session.fork() for _ in range(4)]  # memory that the pool keeps
        del forks
        times = []
        for _ in range(50):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            copy = session.fork()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
            del copy
        print(f"  fork: {1e6 * statistics.median(times):.0f} microseconds, done on the GPU (median of 50)", flush=True)

    def kernels(self) -> None:
        """Times of single kernels, which overlap their neighbours; floors of those that are bound by bytes."""
        session = self.filled(4096)
        self.per_second([session], 4)
        read = {
            "Short, (Ending)0": bytes_of(self.path, "attn_q.weight", "attn_k.weight", "attn_v.weight", "output.weight")
            - bytes_of(self.path, "attn_output.weight"),
            "Short, (Ending)1": bytes_of(self.path, "attn_output.weight"),
            "Long, (Ending)1": bytes_of(self.path, "ffn_down.weight"),
            "Short, (Ending)2": bytes_of(self.path, "ffn_gate.weight", "ffn_up.weight"),
            "attend_kernel": session.memory_bytes,
        }
        floors = {name: size / self.bandwidth for name, size in read.items()}
        self.profile("one token at 4,096", lambda: [self.step([session]) for _ in range(8)], 8, floors)
        batch = [session.fork() for _ in range(64)]
        advance_all = lambda: [self.step(batch) for _ in range(4)]  # noqa: E731
        advance_all()
        weights = {
            "gemm": self.decode_bytes / self.bandwidth,
            "attend_kernel": 64 * session.memory_bytes / self.bandwidth,
        }
        self.profile("one step of 64 sessions", advance_all, 4, weights)
        operations = 2 * PASS * sum(n for name, (n, _) in tensors(self.path).items() if name.startswith("blk."))
        floors = {"nvjet": operations / self.rate}
        self.profile(f"a prompt of {PASS:,}", lambda: self.filled(PASS), 1, floors)

    def profile(self, what: str, action: Callable[[], object], repeat: int, floors: dict[str, float]) -> None:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            begin = time.perf_counter()
            action()
            torch.cuda.synchronize()
            wall = 1e6 * (time.perf_counter() - begin) / repeat
        events = sorted(profiler.key_averages(), key=lambda e: -e.device_time_total)
        launches = sum(e.count for e in events if e.device_time_total > 0) / repeat
        print(f"  {what}: {launches:.0f} kernels and copies, GPU busy {busy(profiler) / repeat:,.0f} of {wall:,.0f} us")
        for event in [e for e in events if e.device_time_total > 0][:12]:
            took, count = event.device_time_total / repeat, event.count / repeat
            name = re.sub(r"lola::|\(anonymous namespace\)::|void ", "", event.key)
            floor = next((1e6 * seconds for key, seconds in floors.items() if key in name), None)
            share = "" if floor is None else f" floor {floor:,.0f} us"
            print(f"    {took:9.1f} us {count:6.1f} x {took / count:7.1f} {name[:72]}{share}")
        sys.stdout.flush()


def busy(profiler: Any) -> float:
    """Microseconds in which anything ran on the GPU."""
    ranges = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_time > 0)
    total, end = 0.0, 0.0
    for start, stop in ranges:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def tiny() -> None:
    """The embedded model: what launches cost."""
    session = Model.default(device="cuda").session()
    list(session.generate("Hello", max_tokens=100, stop_at_end=False))
    begin = time.perf_counter()
    list(session.generate(max_tokens=512, stop_at_end=False))
    print(f"tiny model, one session: {512 / (time.perf_counter() - begin):,.0f} tok/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, nargs="+", required=True)
    parser.add_argument("-a", "--adapter", type=Path, required=True)
    parser.add_argument("--depths", type=int, nargs="*", default=[4096, 32768, 131072])
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 4096, 32768])
    parser.add_argument(
        "--batches", nargs="*", default=["32768x8", "32768x64", "32768x256", "512x64"], metavar="DEPTHxCOUNT"
    )
    rows = ["decode", "depth", "prefill", "sessions", "fork", "kernels", "tiny"]
    parser.add_argument("rows", nargs="*", help=" ".join(rows))
    options = parser.parse_args()
    chosen = options.rows or rows
    bandwidth, rate = limits()
    torch.cuda.empty_cache()
    print(
        f"{torch.cuda.get_device_name()}: copies {bandwidth / 1e12:.2f} TB/s, "
        f"bfloat16 products {rate / 1e12:.0f} TFLOP/s"
    )
    if "tiny" in chosen:
        tiny()
    for path in options.model:
        bench = Bench(path, options.adapter, bandwidth, rate)
        cases = [tuple(map(int, case.split("x"))) for case in options.batches]
        actions: dict[str, Callable[[], None]] = {
            "decode": bench.decode,
            "depth": lambda bench=bench: bench.depth(options.depths),
            "prefill": lambda bench=bench: bench.prefill(options.prompts),
            "sessions": lambda bench=bench, cases=cases: bench.sessions(cases),
            "fork": bench.fork,
            "kernels": bench.kernels,
        }
        for row in rows:
            if row in chosen and row in actions:
                actions[row]()


if __name__ == "__main__":
    main()
