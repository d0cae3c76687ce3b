"""The class `Llama` of llama-cpp-python on a session of this library."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import UnsupportedError, UsageError
from ..chat import encode_chat, go_to_prefix, shared_tokens
from ..chat_template import ChatTemplate
from ..model import Model, PathLike
from ..prefix_store import usual_marks
from ..session import Session
from ..tool_calls import find_tool
from . import arguments, chat_completion
from .cache import BaseLlamaCache
from .choice import Choice
from .completion import Completion, Step
from .embedding import LLAMA_POOLING_TYPE_UNSPECIFIED, check_pooling, embed, response
from .helpers import LlamaState
from .hub import download
from .loading import load, spelled_metadata

_REWIND_COPIES = 8  # of the memories, so that a prompt that shares a beginning is not read again


class Llama:
    """Drop-in for llama_cpp.Llama. One thread uses it at a time.

    model_path   a GGUF file
    adapter      a LoLA adapter for it (`lora_path` is taken as one too); none: softmax attention, n_ctx tokens
    n_ctx        tokens that softmax layers hold, 0: as many as the model was trained for; LoLA layers have no limit
    n_gpu_layers  of the last layers, how many run on the GPU; -1: all. Without the CUDA part a warning, and the CPU
    n_threads    None: the physical cores
    chat_format  a named template; None: the model's own
    device       as in Model; None: what n_gpu_layers asks for
    embedding    embed() and create_embedding() may be called; pooling_type says how
    session      further options of the session, see SessionOptions

    Arguments that mean nothing here warn where they are not at their default; unknown ones raise TypeError.
    """

    def __init__(
        self,
        model_path: PathLike,
        *,
        n_ctx: int = 512,
        n_gpu_layers: int = 0,
        seed: int = arguments.RANDOM_SEED,
        n_threads: int | None = None,
        last_n_tokens_size: int = 64,
        logits_all: bool = False,
        lora_path: PathLike | None = None,
        adapter: PathLike | None = None,
        chat_format: str | None = None,
        verbose: bool = True,
        device: str | None = None,
        embedding: bool = False,
        pooling_type: int = LLAMA_POOLING_TYPE_UNSPECIFIED,
        session: Mapping[str, Any] | None = None,
        **legacy: Any,
    ) -> None:
        arguments.check_loading(legacy)
        self.model_path = os.fspath(model_path)
        self.verbose = verbose
        self.chat_format = chat_format
        self.last_n_tokens_size = last_n_tokens_size
        self._model: Model | None = load(model_path, adapter or lora_path, n_threads, n_gpu_layers, device)
        options = {"context_length": n_ctx or self._model.info.training_context, **(session or {})}
        self._n_ctx: int = options["context_length"]
        self._bounded = self._model.info.softmax_layers > 0
        budget = _REWIND_COPIES * self._model.session_bytes(**options)
        self._session_options: dict[str, Any] = {"rewind_budget": budget, **options}
        self._session: Session | None = self._model.session(**self._session_options)
        self.context_params = SimpleNamespace(n_ctx=self._n_ctx, embeddings=embedding)
        self._pooling_type = check_pooling(pooling_type)
        self.cache: BaseLlamaCache | None = None
        self.set_seed(seed)
        self._template: ChatTemplate | None = None

    # --- Text and tokens ---

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return self._loaded.tokenizer.encode_bytes(text, add_special=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Bytes of tokens. At the beginning of a text the space that some tokenizers put there is left out."""
        text = b"".join([self.piece(token, special=special) for token in tokens])
        if prev_tokens is None and self._loaded.tokenizer.adds_space and tokens and tokens[0] == self.token_bos():
            return text.removeprefix(b" ")
        return text

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token; those of control tokens only where `special` asks for them."""
        tokenizer = self._loaded.tokenizer
        return b"" if tokenizer.is_control(token) and not special else tokenizer.token_bytes(token)

    def is_end(self, token: int) -> bool:
        return token in self._loaded.tokenizer.end_ids

    def token_bos(self) -> int:
        return _or_minus_one(self._loaded.tokenizer.bos_id)

    def token_eos(self) -> int:
        return _or_minus_one(self._loaded.tokenizer.eos_id)

    def token_nl(self) -> int:
        return self._loaded.tokenizer.encode("\n", add_special=False)[-1]

    # --- The model ---

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata but its arrays."""
        return spelled_metadata(self._loaded._core.file)

    def n_ctx(self) -> int:
        return self._n_ctx

    def n_vocab(self) -> int:
        return self._loaded.info.vocabulary

    def n_embd(self) -> int:
        return self._loaded.info.dim

    # --- Step by step ---

    @property
    def n_tokens(self) -> int:
        """Tokens evaluated."""
        return self._running.position

    @property
    def input_ids(self) -> NDArray[np.intc]:
        return np.array(self._running.tokens, dtype=np.intc)

    @property
    def eval_logits(self) -> list[list[float]]:
        """[1][vocabulary] of the last token."""
        return [self._running.logits.tolist()]

    def set_seed(self, seed: int) -> None:
        self._seed = seed
        self._seeds = random.Random(None if seed in (arguments.RANDOM_SEED, -1) else seed)

    def reset(self) -> None:
        self._session = self._loaded.session(**self._session_options)

    def eval(self, tokens: Sequence[int]) -> None:
        self._running.append(tokens)

    def sample(self, **options: Any) -> int:
        """A token; options as in generate."""
        return self._step(Choice(self, options)).id

    def generate(
        self, tokens: Sequence[int], *, reset: bool = True, **options: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Token ids; with `reset` what is not a prefix of `tokens` is forgotten first. send() appends more tokens.

        options: see Choice
        """
        choice = Choice(self, options)
        steps = self._steps(tokens, choice, reset=reset)
        more: Sequence[int] | None = None
        for step in steps:
            more = yield step.id
            if more is not None:
                choice.extra.extend(more)

    def _steps(self, tokens: Sequence[int], choice: Choice, *, reset: bool = True) -> Iterator[Step]:
        if reset:
            self._read(list(tokens))
        else:
            self.eval(tokens)
        while True:
            step = self._step(choice)
            if choice.criteria and choice.criteria(self.input_ids.astype(np.int64), self._running.logits):
                return
            yield step
            extra, choice.extra = choice.extra, []
            self.eval([step.id, *extra])

    def _read(self, prompt: list[int]) -> None:
        """Goes to the longest beginning of a prompt that is known, and reads the rest."""
        if self.cache is None:
            return self.eval(go_to_prefix(self._running, prompt))
        common = shared_tokens(self._running.tokens or (), prompt)
        known = self.cache.longest(self._loaded, prompt, self._session_options, longer_than=common)
        self._session = known or self._running
        rest = go_to_prefix(self._running, prompt)
        begin = len(prompt) - len(rest)
        for stop in (*usual_marks(len(prompt)), len(prompt)):
            if stop > begin:
                self.eval(prompt[begin:stop])
                self.cache.put(self._running)
                begin = stop

    def _step(self, choice: Choice) -> Step:
        adjusted = choice.adjust(self._running)
        token, logprob, top = self._running.sample(choice.sampler, top_logprobs=choice.top, adjusted=adjusted)
        if choice.constraint is not None and not self.is_end(token):
            choice.constraint.accept(token)
        return Step(token, self.piece(token), logprob, top)

    # --- State ---

    def save_state(self) -> LlamaState:
        session = self._running
        return LlamaState(session.snapshot(), self.input_ids, session.position, session.memory_bytes, self._seed)

    def load_state(self, state: LlamaState) -> None:
        self._running.restore(state.snapshot)
        self._seed = state.seed

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Prompts then start from the longest beginning that the cache knows, of other conversations too."""
        self.cache = cache

    def close(self) -> None:
        """Gives the memory back; the object cannot be used after that."""
        self._session = self._model = None

    @property
    def _loaded(self) -> Model:
        if self._model is None:
            raise UsageError("Llama: it is closed")
        return self._model

    @property
    def _running(self) -> Session:
        if self._session is None:
            raise UsageError("Llama: it is closed")
        return self._session

    # --- Embeddings ---

    def pooling_type(self) -> int:
        return self._pooling_type

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> dict[str, Any]:
        """Vectors of texts in OpenAI's shape."""
        vectors, tokens = self.embed([input] if isinstance(input, str) else input, return_count=True)
        return response(vectors, tokens, model or self.model_path)

    def embed(
        self, input: str | Sequence[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """A vector (of one text) or vectors: hidden states after the final norm, pooled by pooling_type.

        normalize     to length 1
        truncate      to n_ctx, where softmax layers bound it; ValueError for longer texts otherwise
        return_count  the number of tokens too
        """
        if not self.context_params.embeddings:
            raise RuntimeError("Llama model must be created with embedding=True to call this method")
        limit = self._n_ctx if truncate and self._bounded else None
        texts = [self.tokenize(text.encode())[:limit] for text in ([input] if isinstance(input, str) else input)]
        options = {k: v for k, v in self._session_options.items() if k != "rewind_budget"}
        vectors = [embed(self._loaded, tokens, self._pooling_type, normalize, options) for tokens in texts]
        found = vectors[0] if isinstance(input, str) else vectors
        return (found, sum(map(len, texts))) if return_count else found

    # --- Completions ---

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        *,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        model: str | None = None,
        **options: Any,
    ) -> Any:
        """A dictionary, or with `stream` an iterator of chunks; further options as in Choice.

        ValueError where the prompt does not fit into n_ctx (models without an adapter only).
        """
        if echo and logprobs is not None:
            raise UnsupportedError("create_completion: echo together with logprobs; Session.score gives a prompt's")
        choice = Choice(self, {"temp": temperature, **options}, top_logprobs=logprobs or 0)
        tokens = self._prompt_tokens(prompt)
        completion = Completion(
            self,
            self._steps(tokens, choice),
            model=model or self.model_path,
            prompt=prompt if isinstance(prompt, str) else self.detokenize(prompt).decode(errors="ignore"),
            prompt_tokens=len(tokens),
            stops=[stop] if isinstance(stop, str) else stop or [],
            max_tokens=self._most_tokens(max_tokens, len(tokens)),
            logprobs=logprobs,
            echo=echo,
            suffix=suffix,
        )
        return completion.stream() if stream else completion.whole()

    __call__ = create_completion

    def _prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        tokenizer = self._loaded.tokenizer
        tokens = tokenizer.encode(prompt, add_special=tokenizer.add_bos)
        return tokens or [self.token_bos()]

    def _most_tokens(self, max_tokens: int | None, prompt_tokens: int) -> int | None:
        unlimited = max_tokens is None or max_tokens <= 0
        if not self._bounded:
            return None if unlimited else max_tokens
        room = self._n_ctx - prompt_tokens
        if room <= 0:
            raise ValueError(f"Requested tokens ({prompt_tokens}) exceed context window of {self._n_ctx}")
        return room if max_tokens is None or max_tokens <= 0 else min(max_tokens, room)

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: str | Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        *,
        stop: str | Sequence[str] | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        **options: Any,
    ) -> Any:
        """A dictionary, or with `stream` an iterator of chunks; further options as in create_completion."""
        if functions is not None or function_call is not None:
            tools, tool_choice = chat_completion.legacy_tools(functions, function_call)
        template = self._chat_template()
        forced = tool_choice["function"]["name"] if isinstance(tool_choice, Mapping) and tools is not None else None
        grammar = chat_completion.reply_grammar(
            response_format, None if forced is None else find_tool(tools or (), forced)
        )
        if grammar is not None:
            options["grammar"] = grammar
        completion = self.create_completion(
            encode_chat(self._loaded, template, template.render(messages, tools=tools)),
            temperature=temperature,
            stop=[*([stop] if isinstance(stop, str) else stop or ()), *template.stop],
            max_tokens=max_tokens,
            logprobs=(top_logprobs or 0) if logprobs else None,
            **options,
        )
        stream = options.get("stream", False)
        if forced is not None:
            return (chat_completion.forced_call_chunks if stream else chat_completion.forced_call)(completion, forced)
        convert = chat_completion.from_chunks if stream else chat_completion.from_completion
        return convert(completion, has_tools=bool(tools) and tool_choice != "none")

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            has_own = "tokenizer.chat_template" in self._loaded._core.file.keys()  # noqa: SIM118, it is no dictionary
            if self.chat_format is None and not has_own:
                warnings.warn("Llama: the model has no chat template; llama-2 is used", UserWarning, stacklevel=3)
            self._template = ChatTemplate.of(self._loaded, self.chat_format or (None if has_own else "llama-2"))
        return self._template

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str,
        additional_files: Sequence[str] = (),
        local_dir: PathLike | None = None,
        cache_dir: PathLike | None = None,
        **options: Any,
    ) -> Llama:
        """From the Hugging Face hub (extra `hub`); filename is a pattern that must match one file."""
        paths = [download(repo_id, name, local_dir, cache_dir) for name in (filename, *additional_files)]
        return cls(paths[0], **options)


def _or_minus_one(token: int | None) -> int:
    return -1 if token is None else token
