"""Finds calls of functions in a model's reply while it streams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _core
from .grammar import Grammar
from .text_stream import StopMatcher

# How models spell calls: what opens a list of JSON objects {"name": ..., "arguments": ...}, and what closes it.
_SPELLINGS = {
    "<tool_call>": "</tool_call>",  # Hermes, Qwen
    "[TOOL_CALLS]": None,  # Mistral: a JSON list
    "<|python_tag|>": None,  # Llama 3
}
_ARGUMENTS = ("arguments", "parameters")


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of a call. The first of a call has its name; the others continue its arguments, which are JSON text."""

    index: int
    name: str | None
    arguments: str


@dataclass
class ToolCall:
    """A call of a function, arguments as JSON text."""

    name: str
    arguments: str


class ToolCallReader:
    """Splits a reply that comes in parts into its content and the calls in it.

    A reply that is nothing but a JSON object with a name and arguments (Llama 3, or a forced call) is a call too.
    """

    def __init__(self) -> None:
        self._before = ""  # text that may still turn out to open a call
        self._closing: str | None = None
        self._calls = 0
        self._object: _ObjectReader | None = None
        self._reading = False
        self._started = False

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """(content, parts of calls) that became certain."""
        content = ""
        deltas: list[ToolCallDelta] = []
        text, self._before = self._before + text, ""
        while text:
            if self._reading:
                text = self._read_calls(text, deltas)
            else:
                more, text = self._until_call(text)
                content += more
                if not self._reading:
                    self._before = text
                    break
        return content, _merged(deltas)

    def flush(self) -> str:
        """Content that was held back, when no more text comes. A call that was cut off stays as it is."""
        rest, self._before = self._before, ""
        return "" if self._reading else rest

    def _until_call(self, text: str) -> tuple[str, str]:
        """(content, rest): the rest begins after what opens a call, or may still become that."""
        if not self._started and not text.strip():
            return "", text
        if not self._started and text.lstrip().startswith("{"):
            self._started, self._reading, self._closing = True, True, None
            return "", text.lstrip()
        self._started = True
        matcher = StopMatcher(tuple(_SPELLINGS))
        content = matcher.push(text)
        rest = text[len(content) :]
        if matcher.stopped:
            opening = next(opening for opening in _SPELLINGS if rest.startswith(opening))
            self._reading, self._closing = True, _SPELLINGS[opening]
            rest = rest.removeprefix(opening)
        return content, rest

    def _read_calls(self, text: str, deltas: list[ToolCallDelta]) -> str:
        """Reads objects until the closing text; returns what is left."""
        for i, character in enumerate(text):
            if self._object is None:
                if self._closing is not None and character == self._closing[0]:
                    return self._close(text[i:])
                if character == "{":
                    self._object = _ObjectReader(self._calls)
                    self._calls += 1
            if self._object is not None:
                deltas.extend(self._object.push(character))
                if self._object.done:
                    self._object = None
        return ""

    def _close(self, text: str) -> str:
        closing = self._closing or ""
        if len(text) < len(closing) and closing.startswith(text):
            self._before = text
            return ""
        self._reading = False
        return text.removeprefix(closing)


class _ObjectReader:
    """Reads one object {"name": ..., "arguments": {...}}, character by character."""

    def __init__(self, index: int) -> None:
        self.done = False
        self._index = index
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._key: str | None = None  # whose value is being read, at depth 1
        self._text = ""  # of the key or the value so far
        self._name: str | None = None
        self._held = ""  # arguments that came before the name

    def push(self, character: str) -> list[ToolCallDelta]:
        before = self._depth
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        if before == 0:
            return []
        ends_value = not self._in_string and (self._depth == 0 or (self._depth == 1 and character == ","))
        if self._key is None and self._depth == 1 and character == ":" and not self._in_string:
            self._key, self._text = self._text.strip().strip('"'), ""
            return []
        if not ends_value:
            self._text += character
            return self._arguments(character) if self._key in _ARGUMENTS else []
        deltas = self._end_value()
        self.done = self._depth == 0
        return deltas

    def _arguments(self, text: str) -> list[ToolCallDelta]:
        if self._name is None:
            self._held += text
            return []
        return [ToolCallDelta(self._index, None, text)]

    def _end_value(self) -> list[ToolCallDelta]:
        key, text = self._key, self._text
        self._key, self._text = None, ""
        if key != "name":
            return []
        try:
            self._name = str(json.loads(text))
        except ValueError:
            self._name = text.strip()
        held, self._held = self._held, ""
        return [ToolCallDelta(self._index, self._name, held)]


def _merged(deltas: Sequence[ToolCallDelta]) -> list[ToolCallDelta]:
    """What continues the same call becomes one part."""
    merged: list[ToolCallDelta] = []
    for delta in deltas:
        if merged and delta.name is None and merged[-1].index == delta.index:
            before = merged.pop()
            delta = ToolCallDelta(delta.index, before.name, before.arguments + delta.arguments)
        merged.append(delta)
    return merged


def collect(calls: list[ToolCall], deltas: Sequence[ToolCallDelta]) -> None:
    """Puts the parts together."""
    for delta in deltas:
        if delta.name is not None:
            calls.append(ToolCall(delta.name, delta.arguments.strip()))
        elif calls:
            calls[-1].arguments = (calls[-1].arguments + delta.arguments).lstrip()


def find_tool(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The description of a function among OpenAI-shaped tools. UsageError where it is not there."""
    for tool in tools:
        function: Mapping[str, Any] = tool["function"]
        if function["name"] == name:
            return function
    names = ", ".join(str(tool["function"]["name"]) for tool in tools)
    raise _core.UsageError(f"tool_choice: found {name!r}, wanted one of the tools: {names}")


def call_grammar(function: Mapping[str, Any]) -> Grammar:
    """What forces a reply to be a call of this function."""
    properties = {"name": {"const": function["name"]}, "arguments": function.get("parameters", {"type": "object"})}
    return Grammar.json_schema(
        {"type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": False}
    )
