"""Times what users wait for around sessions: save, load, snapshot, prefix store, and decoding in a batch.

    python tools/bench_sessions.py -m base-Q4_K_M.gguf -a base-lola.gguf

Each figure is the median of several runs on a warm disk; the batch curve is tokens per second of all sessions together.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lola_cpp import Batch, Model, PrefixStore, Session


def milliseconds(action: Callable[[], object], repeat: int) -> str:
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - begin))
    return f"{statistics.median(times):8.1f} ms  (of {repeat}, worst {max(times):.1f})"


def save_load_continue(model: Model, session: Session, path: Path) -> None:
    session.save(path)
    for _ in model.load_session(path).generate(max_tokens=2, stop_at_end=False):
        pass  # the first token is chosen from the logits of the file, the second wants a pass over the weights


def time_states(model: Model, tokens: list[int], folder: Path, repeat: int) -> None:
    session, path = model.session(), folder / "session.state"
    for length in (256, len(tokens)):
        session.append(tokens[session.position : length])
        session.save(path)
        size, memory = path.stat().st_size, session.memory_bytes
        print(f"after {length} tokens: session {memory:,} bytes, file {size:,} bytes ({size / memory - 1:+.3%})")
        print("  save                 ", milliseconds(lambda: session.save(path), repeat))
        print("  load                 ", milliseconds(lambda: model.load_session(path), repeat))
        print("  save, load, continue ", milliseconds(lambda: save_load_continue(model, session, path), repeat))
        print("  snapshot             ", milliseconds(session.snapshot, repeat))


def time_prefix_store(model: Model, tokens: list[int], folder: Path, repeat: int) -> None:
    store = PrefixStore(folder, max_bytes=1 << 34)
    begin = time.perf_counter()
    store.session(model, tokens)
    print(f"prefix store, {len(tokens)} tokens: read and stored in {time.perf_counter() - begin:.2f} s")
    print("  hit                  ", milliseconds(lambda: store.session(model, tokens), repeat))
    for i in range(200):  # a folder of other entries is searched too
        (folder / f"{'0' * 24}-{i}-{'0' * 40}.state").touch()
    print("  hit among 200 others ", milliseconds(lambda: store.session(model, tokens), repeat))


def time_batches(model: Model, sizes: list[int], steps: int) -> None:
    print(f"decoding together, {steps} steps, after prompts of 64 tokens:")
    rng = random.Random(0)
    prompts = [[rng.randrange(2, model.info.vocabulary) for _ in range(64)] for _ in range(max(sizes))]
    for size in sizes:
        batch = Batch()
        for prompt in prompts[:size]:
            batch.add(model.session(), prompt, stop_at_end=False)
        while sum(1 for _ in batch.step()) < size:  # the prompts
            continue
        begin = time.perf_counter()
        count = 0
        while count < size * steps:
            count += len(batch.step())
        print(f"  {size:>3} sessions: {count / (time.perf_counter() - begin):8.1f} tokens/s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("-a", "--adapter", type=Path)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--tokens", type=int, default=1024, help="of the long history")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=["states", "prefix", "batch"])
    options = parser.parse_args()
    model = Model.default(threads=options.threads)
    if options.model is not None:
        model = Model(options.model, options.adapter, threads=options.threads)
    print(f"{model.info.name or model.path}; {model.info.backend}")
    rng = random.Random(1)
    tokens = [rng.randrange(2, model.info.vocabulary) for _ in range(options.tokens)]
    with tempfile.TemporaryDirectory() as folder:
        if options.only in (None, "states"):
            time_states(model, tokens, Path(folder), options.repeat)
        if options.only in (None, "prefix"):
            time_prefix_store(model, tokens, Path(folder) / "prefixes", options.repeat)
    if options.only in (None, "batch"):
        time_batches(model, options.batch, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
