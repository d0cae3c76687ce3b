"""lm-evaluation-harness on GGUF files with adapters: its command, with the model `lola_cpp` registered.

    pip install 'lola_cpp[eval]'
    python -m lola_cpp.eval.harness --model lola_cpp --model_args model=base.gguf,adapter=lola.gguf --tasks hellaswag

Up to 0.4.13 the harness looks models up in a table of its own and has no option that imports others, so this module is
its command. Later releases find `lola_cpp` by the entry point in pyproject.toml: `lm_eval --model lola_cpp ...`.

Model arguments: those of LolaModel, and the options of Model.session (sparse_size=256, say). The harness's own --device
is not looked at, because it names a GPU where it is not given: backend=cuda does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, cast

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows
from tqdm import tqdm

from .._core import UsageError
from ..chat_template import ChatTemplate
from ..options import GenerationOptions
from ..passes import advance
from ..session import Session
from .batching import Job, generate_each
from .configurations import Configuration

Pair = tuple[tuple[str, str], list[int], list[int]]  # texts, tokens of the context, tokens of the continuation

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@register_model("lola_cpp")
class LolaModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A GGUF file, with or without a LoLA adapter.

    model         None: the small model inside the package
    adapter       None: the embedded model's; for a file none. "none": the model's own softmax attention
    backend       "cpu" or "cuda"
    batch_size    sessions that share a pass
    max_length    tokens kept of context and continuation, from the end; None: no limit, but where layers have softmax
                  attention, the context that the model was trained with
    max_gen_toks  where a task names none
    device, max_batch_size  the harness gives them; they are not used
    options       of Model.session
    """

    def __init__(
        self,
        model: str | None = None,
        adapter: str | None = None,
        *,
        backend: str = "cpu",
        threads: int | None = None,
        batch_size: int | str = 8,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        device: object = None,
        max_batch_size: object = None,
        **options: Any,
    ) -> None:
        super().__init__()
        base = Configuration("lola_cpp", model, adapter, backend, threads)
        self._configuration = base.with_options(**options)
        self.model = self._configuration.load()
        self.tokenizer = self.model.tokenizer
        self._active = 8 if str(batch_size).startswith("auto") else int(batch_size)
        has_softmax = self.model.info.softmax_layers > 0
        self._limit = max_length or (self.model.info.training_context if has_softmax else sys.maxsize)
        self._max_gen_toks = max_gen_toks
        self._template: ChatTemplate | None = None

    @property
    def eot_token_id(self) -> int:
        ends = self.tokenizer.end_ids
        if not ends:
            raise UsageError(f"{self.model.path}: found no end-of-text token, wanted one to begin empty contexts with")
        return min(ends)

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.model.info.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        tokens = self.tokenizer.encode(string, add_special=add_special_tokens is not False)
        bos = self.tokenizer.bos_id
        spelled = add_special_tokens is None and len(tokens) > 1 and tokens[0] == tokens[1] == bos
        return tokens[1:] if spelled else tokens

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Only its presence counts; apply_chat_template renders the model's own, or the one named here."""
        self._template = ChatTemplate.of(self.model, chat_template if isinstance(chat_template, str) else None)
        return "GGUF" if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        template = self._template or ChatTemplate.of(self.model)
        return template.render(chat_history, add_generation_prompt=add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        """Continuations of one context share its reading; several contexts are read in the same passes."""
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), desc="scoring", disable=disable_tqdm) as progress:
            for groups in self._context_groups(requests):
                sessions = [self._session(len(context) + most) for context, most, _ in groups]
                for session, (context, _, _) in zip(sessions, groups, strict=True):
                    session.pending.extend(context)
                advance(sessions)
                for session, (_, _, members) in zip(sessions, groups, strict=True):
                    for index, continuation in members:
                        found[index] = _likelihood(session, continuation)
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
                        progress.update()
        return [found[index] for index in range(len(requests))]

    def _context_groups(
        self, requests: Sequence[Pair]
    ) -> Iterator[list[tuple[list[int], int, list[tuple[int, list[int]]]]]]:
        """Lists of (context, longest continuation, [(index of the request, continuation)]), each for one pass."""
        cut = [self._cut(context, continuation) for _, context, continuation in requests]
        groups = []
        for context, indices in groupby(sorted(range(len(cut)), key=lambda i: cut[i][0]), key=lambda i: cut[i][0]):
            members = [(i, cut[i][1]) for i in indices]
            groups.append((context, max(len(continuation) for _, continuation in members), members))
            if len(groups) == self._active:
                yield groups
                groups = []
        if groups:
            yield groups

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The end of both that the limit leaves; at least one token of the context."""
        if len(continuation) >= self._limit:
            raise UsageError(f"continuation: found {len(continuation)} tokens, wanted fewer than {self._limit}")
        return context[max(0, len(context) + len(continuation) - self._limit) :], continuation

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        sums = []
        for request in tqdm(requests, desc="scoring", disable=disable_tqdm):
            (text,) = request.args
            tokens = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, min(self._limit - 1, len(tokens) or 1), 1)
            total = 0.0
            for inputs, targets in windows:
                run = [*inputs, targets[-1]]
                total += float(self._session(len(run)).score(run)[-len(targets) :].sum(dtype=float))
            sums.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        texts: dict[int, str] = {}
        jobs = (self._job(index, *request.args) for index, request in enumerate(requests))
        with tqdm(total=len(requests), desc="generating", disable=disable_tqdm) as progress:
            for job, text, _ in generate_each(jobs, active=self._active):
                texts[job.key] = text
                self.cache_hook.add_partial("generate_until", requests[job.key].args, text)
                progress.update()
        return [texts[index] for index in range(len(requests))]

    def _job(self, index: int, context: str, arguments: dict[str, Any]) -> Job[int]:
        most = int(arguments.get("max_gen_toks", self._max_gen_toks))
        tokens = self.tok_encode(context)[-max(1, self._limit - most) :]
        sampling: dict[str, Any] = {name: arguments[name] for name in _SAMPLING if name in arguments}
        if not arguments.get("do_sample", False):
            sampling["temperature"] = 0.0
        until = arguments.get("until") or []
        stop = [until] if isinstance(until, str) else [text for text in until if text]
        options = cast(GenerationOptions, {"max_tokens": most, "stop": stop, **sampling})
        return Job(index, partial(self._session, len(tokens) + most), tokens, options)

    def _session(self, length: int) -> Session:
        return self._configuration.session(length)


def _likelihood(session: Session, continuation: list[int]) -> tuple[float, bool]:
    """The log-probability of a continuation, and whether greedy decoding would give it. The session stays."""
    if not continuation:
        return 0.0, True
    total = float(session.fork().score(continuation).sum(dtype=float))
    if int(session.logits.argmax()) != continuation[0]:
        return total, False
    greedy = session.fork().generate(max_tokens=len(continuation), stop_at_end=False)
    return total, all(token.id == wanted for token, wanted in zip(greedy, continuation, strict=True))


if __name__ == "__main__":
    cli_evaluate()
