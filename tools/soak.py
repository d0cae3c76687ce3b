"""Many conversations at once, with random forks, cancels, rewinds, saves and kills; each must equal its replay alone.

    LOLA_FORCE_ISA=scalar python tools/soak.py --minutes 20

A worker process serves the conversations of a durable SessionPool from several threads through one Scheduler, and is
killed and started again at random. What it had acknowledged must be there afterwards. In the end each conversation is
replayed in a session of its own and every token compared, which holds on the scalar path whatever shared a batch.
Memory is watched in each worker that lives a minute, after its first half minute.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lola_cpp import Model, Request, Scheduler, Session, SessionPool

LONGEST = 400  # tokens of a conversation before it is forgotten
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "stop_at_end": False}
MAX_GROWTH = 1.1  # of the resident memory
PERIOD = 0.5  # seconds between two looks at it
WARM_UP = 60  # looks

# glibc raises this by itself, and then keeps sessions in heaps that fragment: growth, but no leak.
ENV = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 18)}

Segment = dict[str, Any]  # {"tokens": [...], "seed": of those that were generated, else null}


class Journal:
    """What each conversation consists of: acknowledged, and proposed while its session is being saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def read(self, name: str) -> tuple[list[Segment], list[Segment]]:
        path = self.folder / name
        if not path.exists():
            return [], []
        data = json.loads(path.read_text())
        return data["acknowledged"], data["proposed"]

    def write(self, name: str, acknowledged: list[Segment], proposed: list[Segment]) -> None:
        new = self.folder / f"{name}.{threading.get_ident()}.new"
        new.write_text(json.dumps({"acknowledged": acknowledged, "proposed": proposed}))
        os.replace(new, self.folder / name)


def length(segments: list[Segment]) -> int:
    return sum(len(segment["tokens"]) for segment in segments)


def cut(segments: list[Segment], position: int) -> list[Segment]:
    kept = []
    for segment in segments:
        tokens = segment["tokens"][:position]
        position -= len(tokens)
        if tokens:
            kept.append({**segment, "tokens": tokens})
    return kept


class Worker:
    def __init__(self, folder: Path, sessions: int, seed: int) -> None:
        self.model = Model.default(threads=1)
        copies = 4 * self.model.session_bytes()
        resident = sessions // 4 * self.model.session_bytes()
        self.pool = SessionPool(self.model, folder / "pool", memory_bytes=resident, durable=True, rewind_budget=copies)
        self.scheduler = Scheduler(self.model, max_active=8, chunk_tokens=32, prefill_tokens=64)
        self.journal = Journal(folder / "journal")
        self.names = [f"talk-{i}" for i in range(sessions)]
        self.seed = seed
        self.operations = 0

    def recover(self) -> None:
        """After a kill each session is where it was acknowledged to be, or where it was about to be."""
        for name in self.names:
            acknowledged, proposed = self.journal.read(name)
            with self.pool.use(name) as session:
                found = [s for s in (proposed, acknowledged) if length(s) == session.position]
            if not found:
                sys.exit(f"{name}: found {session.position} tokens, wanted {length(acknowledged)}: something was lost")
            self.journal.write(name, found[0], found[0])

    def run(self, seconds: float, threads: int) -> None:
        end = time.monotonic() + seconds
        workers = [threading.Thread(target=self.work, args=(end, i), daemon=True) for i in range(threads)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(PERIOD)
            print(json.dumps({"operations": self.operations, "resident": resident_bytes()}), flush=True)
        self.scheduler.close()
        self.pool.close()

    def work(self, end: float, thread: int) -> None:
        rng = random.Random(self.seed * 1000 + thread)
        while time.monotonic() < end:
            try:
                self.one_operation(rng)
            except Exception:
                fail(traceback.format_exc())
            self.operations += 1

    def one_operation(self, rng: random.Random) -> None:
        # Two sessions are taken in one order everywhere, so that no two threads wait for each other.
        first, second = sorted(rng.sample(self.names, 2))
        if rng.random() < 0.15:
            with self.pool.use(first) as origin, self.pool.use(second) as copy:
                self.step(second, copy, lambda _, origin=origin, first=first, c=copy: self.fork(first, origin, c))
            self.acknowledge(second)
        else:
            with self.pool.use(first) as session:
                self.step(first, session, lambda segments, s=session: self.operate(rng, s, segments))
            self.acknowledge(first)

    def step(self, name: str, session: Session, operation: Any) -> None:
        _, saved = self.journal.read(name)  # whoever used it before has saved it
        proposed = operation(saved)
        if length(proposed) != session.position:
            fail(f"{name}: found {session.position} tokens, wanted {length(proposed)}")
        self.journal.write(name, saved, proposed)

    def acknowledge(self, name: str) -> None:
        """Its session was saved when its use ended. Another thread may have gone on with it meanwhile."""
        with self.pool.use(name):
            _, proposed = self.journal.read(name)
            self.journal.write(name, proposed, proposed)

    def fork(self, name: str, origin: Session, copy: Session) -> list[Segment]:
        copy.restore(origin.snapshot())
        return self.journal.read(name)[1]

    def operate(self, rng: random.Random, session: Session, segments: list[Segment]) -> list[Segment]:
        if length(segments) > LONGEST:
            session.restore(self.model.session(rewind_budget=4 * session.memory_bytes).snapshot())
            return []
        if rng.random() < 0.2:
            begin = session.position - len(session.tokens or ())
            position = rng.randint(begin, session.position)
            session.rewind(position)
            return cut(segments, position)
        prompt = [rng.randrange(2, self.model.info.vocabulary) for _ in range(rng.choice([1, 5, 40, 90]))]
        seed = rng.randrange(2**32)
        request = self.scheduler.submit(prompt, session=session, max_tokens=rng.randint(1, 20), seed=seed, **SAMPLING)
        generated = [token.id for token in self.tokens(rng, request)]
        return [*segments, {"tokens": prompt, "seed": None}, {"tokens": generated, "seed": seed}]

    def tokens(self, rng: random.Random, request: Request) -> Any:
        stop = rng.randint(0, 20) if rng.random() < 0.3 else None
        if stop == 0:
            request.cancel()
        for i, token in enumerate(request):
            yield token
            if i == stop:
                request.cancel()


def fail(problem: str) -> None:
    """Ends the worker from any of its threads."""
    print(f"soak: {problem}", file=sys.stderr, flush=True)
    os._exit(1)


def resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:  # the peak, where the system does not tell the present
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_replays(folder: Path, sessions: int) -> int:
    """Tokens generated that were compared with those of a session alone."""
    model, journal, compared = Model.default(threads=1), Journal(folder / "journal"), 0
    for i in tqdm(range(sessions), desc="replaying", file=sys.stderr, disable=None):
        name = f"talk-{i}"
        session = model.session()
        for segment in journal.read(name)[0]:
            if segment["seed"] is None:
                session.append(segment["tokens"])
                continue
            stream = session.generate(max_tokens=len(segment["tokens"]), seed=segment["seed"], **SAMPLING)
            found = [token.id for token in stream]
            if found != segment["tokens"]:
                sys.exit(f"{name}: the replay gives {found}, the transcript has {segment['tokens']}")
            compared += len(found)
    return compared


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--life", type=float, default=120, help="seconds before a worker is killed, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker = Worker(options.worker, options.sessions, options.seed)
        worker.recover()
        worker.run(options.minutes * 60, options.threads)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return supervise(options, Path(folder))


def supervise(options: argparse.Namespace, folder: Path) -> int:
    rng = random.Random(options.seed)
    end, kills, operations = time.monotonic() + options.minutes * 60, 0, 0
    while (left := end - time.monotonic()) > 0:
        life = options.life * rng.uniform(0.5, 1.5)
        last = life >= left
        arguments = ["--worker", str(folder), "--sessions", str(options.sessions), "--threads", str(options.threads)]
        arguments += ["--minutes", str(left / 60 if last else 1e6), "--seed", str(options.seed + kills)]
        worker = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, env=ENV, text=True)
        if not last:
            killer = threading.Timer(life, worker.send_signal, [signal.SIGKILL])
            killer.start()
        lines = [json.loads(line) for line in worker.stdout if line.endswith("}\n")]
        if worker.wait() != (0 if last else -signal.SIGKILL):
            sys.exit(f"soak: the worker ended with {worker.returncode}")
        operations += lines[-1]["operations"] if lines else 0
        check_memory([line["resident"] for line in lines])
        if last:
            break
        kills += 1
    compared = check_replays(folder, options.sessions)
    print(f"{operations} operations, {kills} kills, {compared} generated tokens equal to their replay")
    return 0


def check_memory(resident: list[int]) -> None:
    """The last third must not lie above the first after the start."""
    steady = resident[WARM_UP:]
    if len(steady) < WARM_UP:
        return
    third = len(steady) // 3
    first, last = max(steady[:third]), max(steady[-third:])
    tenths = [max(steady[i * len(steady) // 10 : (i + 1) * len(steady) // 10]) >> 20 for i in range(10)]
    print(f"resident memory in MiB, in tenths of the time: {tenths}", flush=True)
    if last > MAX_GROWTH * first:
        sys.exit("soak: the memory grows")


if __name__ == "__main__":
    sys.exit(main())
