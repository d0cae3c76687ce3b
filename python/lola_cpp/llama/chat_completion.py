"""Chat completions from text completions, in the shape of llama-cpp-python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..tool_calls import ToolCall, ToolCallDelta, ToolCallReader, collect
from .completion import Chunk
from .helpers import LlamaGrammar


def from_completion(completion: Chunk, *, has_tools: bool) -> dict[str, Any]:
    """One dictionary. With tools, calls that the model wrote become `tool_calls`."""
    choice = completion["choices"][0]
    message: dict[str, Any] = {"role": "assistant", "content": choice["text"]}
    finish_reason = choice["finish_reason"]
    if has_tools:
        reader, calls = ToolCallReader(), list[ToolCall]()
        content, deltas = reader.push(choice["text"])
        collect(calls, deltas)
        if calls:
            message["content"] = content + reader.flush() or None
            message["tool_calls"] = [
                _call(_call_id(completion["id"], i, call.name), call.name, call.arguments)
                for i, call in enumerate(calls)
            ]
            finish_reason = "tool_calls"
    return _response(completion, message, finish_reason)


def from_chunks(chunks: Iterator[Chunk], *, has_tools: bool) -> Iterator[dict[str, Any]]:
    """First the role, then contents (and parts of calls), last nothing but the reason of the end."""
    reader = ToolCallReader() if has_tools else None
    names: list[str] = []
    for i, chunk in enumerate(chunks):
        if i == 0:
            yield _chunk(chunk, {"role": "assistant"}, None, None)
        choice = chunk["choices"][0]
        logprobs, finish_reason = _logprobs(choice["logprobs"]), choice["finish_reason"]
        if reader is None:
            delta = {"content": choice["text"]} if finish_reason is None else {}
            yield _chunk(chunk, delta, logprobs, finish_reason)
            continue
        content, deltas = reader.push(choice["text"])
        if finish_reason is not None:
            content += reader.flush()
        if content:
            yield _chunk(chunk, {"content": content}, logprobs, None)
        for part in deltas:
            names.extend([part.name] if part.name is not None else [])
            yield _chunk(chunk, {"tool_calls": [_call_delta(chunk["id"], part, names)]}, logprobs, None)
        if finish_reason is not None:
            yield _chunk(chunk, {}, None, "tool_calls" if names and finish_reason == "stop" else finish_reason)


def forced_call(completion: Chunk, name: str) -> dict[str, Any]:
    """The completion is the arguments of one call."""
    text = completion["choices"][0]["text"]
    message = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": name, "arguments": text},
        "tool_calls": [_call(_call_id(completion["id"], 0, name), name, text)],
    }
    return _response(completion, message, "tool_calls")


def forced_call_chunks(chunks: Iterator[Chunk], name: str) -> Iterator[dict[str, Any]]:
    nothing = {"content": None, "function_call": None, "tool_calls": None}
    last: Chunk | None = None
    for chunk in chunks:
        choice = chunk["choices"][0]
        if last is None:
            yield _chunk(chunk, {"role": "assistant", **nothing}, None, None)
        last = chunk
        call = {"index": 0, **_call(_call_id(chunk["id"], 0, name), name, choice["text"])}
        delta = {
            "role": None,
            "content": None,
            "function_call": {"name": name, "arguments": choice["text"]},
            "tool_calls": [call],
        }
        yield _chunk(chunk, delta, _logprobs(choice["logprobs"]), None)
    if last is not None:
        yield _chunk(last, {"role": None, **nothing}, None, "tool_calls")


def legacy_tools(
    functions: Sequence[Mapping[str, Any]] | None, function_call: str | Mapping[str, Any] | None
) -> tuple[list[Mapping[str, Any]] | None, Any]:
    """`functions` and `function_call` of OpenAI's first interface as tools and tool_choice."""
    tools: list[Mapping[str, Any]] | None = None
    if functions is not None:
        tools = [{"type": "function", "function": function} for function in functions]
    if isinstance(function_call, Mapping):
        return tools, {"type": "function", "function": {"name": function_call["name"]}}
    return tools, function_call


def reply_grammar(response_format: Mapping[str, Any] | None, function: Mapping[str, Any] | None) -> LlamaGrammar | None:
    """What a reply must follow: the arguments of a forced call, or the format that is asked for."""
    if function is not None:
        return LlamaGrammar.from_json_schema(json.dumps(function.get("parameters", {"type": "object"})))
    if response_format is None or response_format.get("type") != "json_object":
        return None
    return LlamaGrammar.from_json_schema(json.dumps(response_format.get("schema", {"type": "object"})))


def _call_id(completion_id: str, index: int, name: str) -> str:
    return f"call__{index}_{name}_{completion_id}"


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_delta(completion_id: str, part: ToolCallDelta, names: Sequence[str]) -> dict[str, Any]:
    if part.name is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    return {
        "index": part.index,
        **_call(_call_id(completion_id, part.index, names[-1]), part.name, part.arguments.lstrip()),
    }


def _response(completion: Chunk, message: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    choice = completion["choices"][0]
    return {
        "id": "chat" + completion["id"],
        "object": "chat.completion",
        "created": completion["created"],
        "model": completion["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": _logprobs(choice["logprobs"]),
                "finish_reason": finish_reason,
            }
        ],
        "usage": completion["usage"],
    }


def _chunk(
    chunk: Chunk, delta: Mapping[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {
        "id": "chat" + chunk["id"],
        "model": chunk["model"],
        "created": chunk["created"],
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": dict(delta), "logprobs": logprobs, "finish_reason": finish_reason}],
    }


def _logprobs(logprobs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    rows = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    content = [
        {
            "token": token,
            "bytes": None,
            "logprob": logprob,
            "top_logprobs": [{"token": other, "logprob": value, "bytes": None} for other, value in top.items()],
        }
        for token, logprob, top in rows
    ]
    return {"content": content, "refusal": None}
