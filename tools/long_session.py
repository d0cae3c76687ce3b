"""One session over very many tokens of the embedded model: memory, speed and sums at the start and at the end.

python tools/long_session.py --tokens 1000000
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time

import numpy as np
from tqdm import tqdm

from lola_cpp import Model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--block", type=int, default=10_000, help="tokens per timing")
    options = parser.parse_args()
    model = Model.default()
    session = model.session()
    rng = random.Random(0)
    # Text-like input: the words of a few sentences in random order, so that keys repeat as they do in language.
    sentence = "the grass is green and the sky is blue while 12345 files return self value"
    words = model.tokenize(sentence, add_special=False)
    speeds, resident = [], []
    for _ in tqdm(range(options.tokens // options.block), unit=" blocks", file=sys.stderr, disable=None):
        tokens = [rng.choice(words) if rng.random() < 0.7 else rng.randrange(4096) for _ in range(options.block)]
        begin = time.perf_counter()
        session.append(tokens)
        speeds.append(options.block / (time.perf_counter() - begin))
        resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        if not np.isfinite(session.logits).all():
            print(f"logits are not finite at position {session.position}")
            return 1
    print(f"{session.position:,} tokens, session {session.memory_bytes:,} bytes, {model.info.backend}")
    print(f"tokens/s: block 2 {speeds[1]:,.0f}, last block {speeds[-1]:,.0f}, ratio {speeds[-1] / speeds[1]:.3f}")
    tenth = max(1, len(speeds) // 10)
    early, late = np.median(speeds[1 : 1 + tenth]), np.median(speeds[-tenth:])
    print(f"medians of tenths: first {early:,.0f}, last {late:,.0f}, ratio {late / early:.3f}")
    print(f"largest resident memory: after block 2 {resident[1]:,} KiB, at the end {resident[-1]:,} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
