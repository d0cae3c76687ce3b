"""A conversation in turns: a chat template over a session that only ever reads what is new."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _core
from .chat_template import ChatTemplate, Message
from .generation import Token
from .passes import Progress
from .session import Session
from .token_stream import TokenStream
from .tool_calls import ToolCall, ToolCallDelta, ToolCallReader, call_grammar, collect, find_tool

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .model import Model
    from .options import GenerationOptions, SessionOptions

_REWIND_COPIES = 8  # of the memories, for templates that change earlier turns


@dataclass(frozen=True)
class ReplyPart:
    """What one token brought: text of the answer, or parts of calls of functions."""

    content: str
    tool_calls: tuple[ToolCallDelta, ...]
    token: Token


class Reply(Iterator[ReplyPart], AsyncIterator[ReplyPart]):
    """The model's turn while it streams, for `for` and `async for`; cancel() from any thread.

    content     the text so far
    tool_calls  the calls so far
    """

    def __init__(self, stream: TokenStream, *, has_tools: bool) -> None:
        self.content = ""
        self.tool_calls: list[ToolCall] = []
        self._stream = stream
        self._reader = ToolCallReader() if has_tools else None

    @property
    def finish_reason(self) -> str | None:
        """None while it runs, then "stop", "length", "cancelled" or "tool_calls"."""
        reason = self._stream.finish_reason
        return "tool_calls" if reason == "stop" and self.tool_calls else reason

    def cancel(self) -> None:
        self._stream.cancel()

    def message(self) -> dict[str, Any]:
        """The turn as the conversation keeps it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message

    def __iter__(self) -> Reply:
        return self

    def __aiter__(self) -> Reply:
        return self

    def __next__(self) -> ReplyPart:
        return self._part(next(self._stream))

    async def __anext__(self) -> ReplyPart:
        return self._part(await self._stream.__anext__())

    def _part(self, token: Token) -> ReplyPart:
        content, deltas = token.text, list[ToolCallDelta]()
        if self._reader is not None:
            content, deltas = self._reader.push(token.text)
            if token.finish_reason is not None:
                content += self._reader.flush()
        self.content += content
        collect(self.tool_calls, deltas)
        return ReplyPart(content, tuple(deltas), token)


class Chat:
    """One conversation.

        chat = Chat(model, system="Be brief.")
        for part in chat.send("Hello"):
            print(part.content, end="", flush=True)

    Each turn is rendered by the template as a whole, and the session reads only what differs from what it has read: as
    a rule the new turn; where the template changes earlier turns, it rewinds to the first change.

    template  of the model's file (None), a name, or a ChatTemplate
    tools     functions that the model may call, as in OpenAI's interface
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        template: ChatTemplate | str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        self.model = model
        self.template = template if isinstance(template, ChatTemplate) else ChatTemplate.of(model, template)
        self.tools = tools
        self.messages: list[Message] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        budget = _REWIND_COPIES * model.session_bytes(**options)
        self.session: Session = model.session(rewind_budget=budget, **options)
        self._reply: Reply | None = None

    def send(
        self,
        content: str | Message,
        *,
        tool_choice: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Reply:
        """A turn of the user, or any message (a tool's result, say); returns the model's turn as it streams.

        Where it raises, the conversation stays as it was.

        tool_choice  the name of the function that the model must call (needs the extra `grammar`)
        progress     as in Session.append, while the turn is read
        """
        self._keep_reply()
        message = {"role": "user", "content": content} if isinstance(content, str) else content
        text = self.template.render([*self.messages, message], tools=self.tools)
        prompt = encode_chat(self.model, self.template, text)
        stop = options.get("stop", ())
        options["stop"] = [*([stop] if isinstance(stop, str) else stop), *self.template.stop]
        if tool_choice is not None:
            options["grammar"] = call_grammar(find_tool(self.tools or (), tool_choice))
        rest = go_to_prefix(self.session, prompt)
        stream = self.session.generate(rest, progress=progress, **options)
        self.messages.append(message)
        self._reply = Reply(stream, has_tools=bool(self.tools))
        return self._reply

    def undo(self) -> None:
        """Takes the last turn of the user, and the answer to it, back."""
        self._keep_reply()
        users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        del self.messages[users[-1] if users else len(self.messages) :]

    def _keep_reply(self) -> None:
        if self._reply is not None:
            self.messages.append(self._reply.message())
            self._reply = None


def encode_chat(model: Model, template: ChatTemplate, text: str) -> list[int]:
    """Tokens of a rendered conversation; begin-of-text is added where the template leaves it to others."""
    tokenizer = model.tokenizer
    bos = "" if tokenizer.bos_id is None else tokenizer.id_to_token(tokenizer.bos_id)
    written = bool(bos) and text.startswith(bos)
    return tokenizer.encode(text, add_special=not (template.complete or written))


def go_to_prefix(session: Session, prompt: Sequence[int]) -> list[int]:
    """Rewinds a session that keeps its history from the beginning to what it shares with a prompt; returns the rest.

    Where that is nothing, the session holds the logits of the prompt's last token: as a rule those of when it was read.
    """
    seen = session.tokens
    if seen is None:
        raise _core.UsageError("session: wanted one with a rewind_budget")
    common = shared_tokens(seen, prompt)
    if common < len(seen) or common == len(prompt):
        session.rewind(common)
    return list(prompt[common:])


def shared_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest beginning of both."""
    unequal = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(unequal, min(len(first), len(second)))
