#!/usr/bin/env python3
"""Is a calibrated kappa good on other models? Small teachers of several seeds, sizes and trainings, and what each
policy recalls in them: the first table of docs/recall.md has the figures.

    python tools/study_kappa.py work            (pip install '.[convert,distill]'; two minutes a teacher on one core)

The language: words of noise with facts in between, each a word of its own that means a name and a thing, and later
questions, a name after which its thing has to follow. What a teacher has to keep are the facts. Small teachers learn
that in a minute. Everything is kept in the folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from byte_tokenizer import write_byte_tokenizer
from lola_cpp import Model, Session
from lola_cpp.convert.adapter import Settings
from lola_cpp.convert.hf import convert_folder
from lola_cpp.convert.kappa import write_with_kappa
from lola_cpp.distill.options import Options
from lola_cpp.distill.run import distill
from lola_cpp.distill.teacher import finish, project, softmax_attention
from lola_cpp.eval.calibrate import by_layer, calibrate, losses_by_rule
from lola_cpp.eval.statistics import wilson
from lola_cpp.passes import advance
from tiny.teacher import make_optimizers, set_rate

NAMES, THINGS, WORDS = 24, 16, 60
NAME = 2  # the first token of each kind; 0 and 1 begin and end texts
THING = NAME + NAMES
FACT = THING + THINGS  # + THINGS * name + thing
WORD = FACT + NAMES * THINGS
VOCABULARY = WORD + WORDS
LENGTH, SHORT, BATCH_TOKENS = 512, 64, 2048
WINDOW = 32
STRENGTH = 4.0  # of the loss that ties norms to attention


@dataclass(frozen=True)
class Kind:
    """norms: -1 or 1 trains small or large keys to be those that draw attention; 0 leaves it to the training."""

    name: str
    architecture: str = "llama"
    seed: int = 0
    weight_decay: float = 0.1
    layers: int = 2
    hidden: int = 128
    norms: int = 0


KINDS = (
    Kind("seed 0"),
    Kind("seed 1", seed=1),
    Kind("no weight decay", seed=2, weight_decay=0.0),
    Kind("larger", seed=3, layers=3, hidden=192),
    Kind("q and k normed", "qwen3", seed=4),
    Kind("q and k normed, no weight decay", "qwen3", seed=5, weight_decay=0.0),
    Kind("large keys attract", seed=6, norms=1),
    Kind("small keys attract", seed=7, norms=-1),
)


class Language:
    """Documents and questions, from one random generator."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def noise(self, length: int, varied: bool) -> np.ndarray:
        """Words drawn anew, or the same few in turn."""
        few = self.rng.choice(WORDS, self.rng.integers(4, 24))
        return WORD + (self.rng.integers(0, WORDS, length) if varied else few[np.arange(length) % len(few)])

    def facts(self, count: int) -> list[tuple[int, int]]:
        names = self.rng.choice(NAMES, count, replace=False)
        return list(zip(names.tolist(), self.rng.integers(0, THINGS, count).tolist(), strict=True))

    def document(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, and which of them are answers."""
        row, answers = self.noise(length, bool(self.rng.random() < 0.4)), np.zeros(length, bool)
        facts, said = self.facts(int(self.rng.integers(1, min(12, length // 8) + 1))), []
        questions = int(self.rng.integers(len(facts), max(len(facts) + 1, length // 6)))
        for at in 2 * np.sort(self.rng.choice(length // 2 - 1, len(facts) + questions, replace=False)):
            if facts and (not said or self.rng.random() < 0.5):
                said.append(facts.pop())
                row[at] = FACT + THINGS * said[-1][0] + said[-1][1]
            else:
                name, thing = said[self.rng.integers(len(said))]
                row[at : at + 2], answers[at + 1] = (NAME + name, THING + thing), True
        return row, answers

    def question(self, count: int, varied: bool) -> tuple[list[int], int]:
        """Facts in the first three quarters, a name last; and the thing that should follow."""
        row, facts = self.noise(LENGTH, varied), self.facts(count)
        for at, (name, thing) in zip(self.rng.choice(LENGTH * 3 // 4, count, replace=False), facts, strict=True):
            row[at] = FACT + THINGS * name + thing
        name, thing = facts[self.rng.integers(count)]
        return [*row[:-1].tolist(), NAME + name], THING + thing


TASKS: dict[str, tuple[int, bool]] = {
    "one fact": (1, False),
    "eight facts": (8, False),
    "one fact, varied noise": (1, True),
    "eight facts, varied noise": (8, True),
}


def write_teacher(kind: Kind, folder: Path, steps: int) -> None:
    """A Hugging Face folder; its tokenizer is of single bytes, and only there because the format wants one."""
    torch.manual_seed(kind.seed)
    config = transformers.AutoConfig.for_model(
        kind.architecture,
        vocab_size=VOCABULARY,
        hidden_size=kind.hidden,
        intermediate_size=2 * kind.hidden,
        num_hidden_layers=kind.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    train(model, kind, steps)
    model.save_pretrained(folder)
    write_byte_tokenizer(folder, VOCABULARY)


def train(model: torch.nn.Module, kind: Kind, steps: int) -> None:
    """Short documents first."""
    language, rate = Language(kind.seed), 4e-3
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    optimizers = make_optimizers(model, matrices, rate, decay=kind.weight_decay, decay_of_rest=kind.weight_decay)
    bar = tqdm(range(steps), desc=kind.name, mininterval=10)
    for step in bar:
        share = step / steps
        set_rate(optimizers, rate * min(1.0, (step + 1) / 50) * min(1.0, 1 - 0.95 * (share - 0.6) / 0.4))
        length = SHORT if share < 0.6 else LENGTH
        documents = [language.document(length) for _ in range(BATCH_TOKENS // length)]
        tokens, answers = (torch.from_numpy(np.stack(rows)) for rows in zip(*documents, strict=True))
        losses, norms = forward(model, tokens, kind)
        answered = losses[answers[:, 1:]].mean()
        (losses.mean() + 2 * answered + 0.1 * norms).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 49:
            bar.set_postfix_str(f"text {losses.mean():.3f} answers {answered:.3f} norms {float(norms):.3f}")


def forward(model: torch.nn.Module, tokens: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Next-token losses [batch, length - 1], and how badly the norms of the keys foretell attention."""
    positions = torch.arange(tokens.shape[1])[None]
    x, norms = model.model.embed_tokens(tokens), torch.zeros(())
    cos, sin = model.model.rotary_emb(x, positions)
    for layer in model.model.layers:
        q, k, v = project(layer, x, (cos[0], sin[0]))
        if kind.norms:
            norms = norms + norm_loss(q, k, kind.norms)
        x = finish(layer, x, softmax_attention(q, k, v))
    logits = model.lm_head(model.model.norm(x))[:, :-1]
    return functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none"), norms


def norm_loss(q: Tensor, k: Tensor, sign: int) -> Tensor:
    """Cross-entropy between what queries beyond the window ask for and softmax(sign ||k||^2)."""
    dim, length = k.shape[-1], k.shape[2]
    by_norm = sign * STRENGTH * k.square().sum(-1) / (2 * dim)
    with torch.no_grad():
        logits = q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].transpose(-1, -2) / dim**0.5
        age = torch.arange(length)[:, None] - torch.arange(length)
        asked = logits.masked_fill(age < 0, float("-inf")).softmax(-1).masked_fill(age <= WINDOW, 0).mean((2, 3))
    return -(asked * by_norm.log_softmax(-1)).sum(-1).mean()


def write_adapters(kind: Kind, folder: Path, steps: int) -> None:
    """base.gguf and adapter.gguf."""
    language = Language(1000 + kind.seed)
    documents = [language.document(LENGTH)[0].tolist() for _ in range(400)]
    lines = folder / "documents.jsonl"
    lines.write_text("".join(json.dumps({"tokens": row}) + "\n" for row in documents))
    settings = Settings(window_size=WINDOW, chunk_size=WINDOW, policy="weighted_recall", kappa=1.0)
    options = Options(
        model=folder / "teacher",
        data=(lines,),
        folder=folder / "distill",
        settings=settings,
        length=LENGTH,
        batch=8,
        micro_batch=8,
        transfer_steps=steps,
        lora_steps=0,
        progress=True,
    )
    distill(options, folder / "adapter.gguf")
    convert_folder(folder / "teacher", folder / "base.gguf", kind="f32")


def find_kappa(folder: Path, seed: int) -> tuple[list[float], dict[str, float]]:
    """Writes slopes.gguf; returns every head's kappa, and the losses that `lola-cpp calibrate` would choose by."""
    base, adapter, slopes = (folder / f"{name}.gguf" for name in ("base", "adapter", "slopes"))
    language = Language(4000 + seed)
    documents = [language.document(LENGTH)[0].tolist() for _ in range(64)]
    heads = calibrate(Model(base, adapter, threads=1), documents[:16])
    write_with_kappa(adapter, slopes, by_layer(heads))
    return [head.kappa for head in heads], losses_by_rule(base, adapter, slopes, documents[16:], threads=1)


def measure(folder: Path, samples: int, sparse_size: int) -> dict[str, dict[str, list[int]]]:
    """By rule: right answers and samples of each task."""
    rows = {
        "softmax": (None, {}),
        "self_recall": ("adapter.gguf", {"policy": "self_recall"}),
        "weighted_recall, kappa 1": ("adapter.gguf", {}),
        "weighted_recall, slopes": ("slopes.gguf", {}),
    }
    found = {}
    for name, (adapter, options) in rows.items():
        model = Model(folder / "base.gguf", adapter and folder / adapter, threads=1)

        def session(model: Model = model, options: dict[str, str] = options) -> Session:
            return model.session(context_length=LENGTH, sparse_size=sparse_size, **options)

        cells = {}
        for number, (task, shape) in enumerate(TASKS.items()):
            language = Language(2000 + number)
            cells[task] = [right_answers(session, [language.question(*shape) for _ in range(samples)]), samples]
        found[name] = cells
    return found


def right_answers(session: Callable[[], Session], questions: list[tuple[list[int], int]]) -> int:
    right = 0
    for begin in range(0, len(questions), 8):
        part = questions[begin : begin + 8]
        sessions = [session() for _ in part]
        for one, (tokens, _) in zip(sessions, part, strict=True):
            one.pending.extend(tokens)
        advance(sessions)
        right += sum(int(s.logits.argmax()) == thing for s, (_, thing) in zip(sessions, part, strict=True))
    return right


def table_rows(
    kind: Kind, kappa: list[float], losses: dict[str, float], found: dict[str, dict[str, list[int]]]
) -> list[str]:
    """The rule with the least loss, of tokens that need a sparse cache, is what `lola-cpp calibrate` takes."""
    spread = f"{np.min(kappa):.2f}, {np.median(kappa):.2f}, {np.max(kappa):.2f}"
    names = {"weighted_recall, kappa 1": "as it was", "weighted_recall, slopes": "slopes"}
    best, lines = min(losses, key=losses.__getitem__), []
    for name, cells in found.items():
        rule = names.get(name, name)
        loss = "" if rule not in losses else f"{losses[rule]:.3f}" + (" taken" if rule == best else "")
        shares = [f"{r / n:.3f} ({' to '.join(f'{x:.2f}' for x in wilson(r, n))})" for r, n in map(cells.get, TASKS)]
        lines.append(f"| {kind.name} | {spread} | {name} | {loss} | {' | '.join(shares)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in KINDS], default=[k.name for k in KINDS])
    parser.add_argument("--steps", type=int, default=1000, help="of a teacher's training")
    parser.add_argument("--transfer-steps", type=int, default=150)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--sparse-size", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| teacher | slopes: least, median, largest | rule | loss | " + " | ".join(TASKS) + " |")
    print("|---" * (4 + len(TASKS)) + "|", flush=True)
    for kind in (kind for kind in KINDS if kind.name in given.kinds):
        folder = given.folder / kind.name.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "teacher" / "config.json").is_file():
            write_teacher(kind, folder / "teacher", given.steps)
        if not (folder / "base.gguf").is_file():
            write_adapters(kind, folder, given.transfer_steps)
        kappa, losses = find_kappa(folder, kind.seed)
        rows = table_rows(kind, kappa, losses, measure(folder, given.samples, given.sparse_size))
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
