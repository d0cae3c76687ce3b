"""Streamed text is what decoding everything at once would give."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lola_cpp._core import UsageError
from lola_cpp.text_stream import StopMatcher, TextStream


class Pieces:
    """Tokens are indices into a list of byte strings; negative ones are control pieces spelled <n>."""

    def __init__(self, pieces: list[bytes], *, adds_space: bool = False) -> None:
        self.pieces = pieces
        self.adds_space = adds_space

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token] if token >= 0 else b"<%d>" % -token

    def is_control(self, token: int) -> bool:
        return token < 0

    def is_special(self, token: int) -> bool:
        return token < 0


def streamed(pieces: list[bytes]) -> str:
    stream = TextStream(Pieces(pieces))
    return "".join(stream.push(token) for token in range(len(pieces))) + stream.flush()


# Bytes that begin, continue, overrun and break UTF-8 sequences, so that short examples reach every state.
UTF8_BYTES = st.sampled_from(b"a \x80\xbf\xc0\xc3\xa9\xe2\x82\xac\xed\xa0\xf0\x9f\xa6\x99\xf4\x90\xff")


@given(st.lists(st.lists(UTF8_BYTES, max_size=4).map(bytes), max_size=12))
def test_streamed_bytes_give_what_decoding_all_at_once_gives(pieces: list[bytes]) -> None:
    assert streamed(pieces) == b"".join(pieces).decode(errors="replace")


@given(st.text(max_size=20), st.data())
def test_a_character_cut_in_parts_is_never_shown_in_parts(text: str, data: st.DataObject) -> None:
    raw = text.encode(errors="replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)))))
    pieces = [raw[a:b] for a, b in itertools.pairwise([0, *cuts, len(raw)])]
    assert streamed(pieces) == raw.decode()
    stream = TextStream(Pieces(pieces))
    for token in range(len(pieces)):
        assert "\ufffd" not in stream.push(token).replace("\ufffd" if "\ufffd" in text else "\0", "")


def test_a_bad_byte_is_shown_as_soon_as_it_cannot_be_completed() -> None:
    stream = TextStream(Pieces([b"\xe2\x82", b"a", b"\xf0\x9f"]))
    assert [stream.push(0), stream.push(1), stream.push(2)] == ["", "\ufffda", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_control_pieces_are_shown_only_on_request() -> None:
    for skip, expected in ((True, ["a", "", "b"]), (False, ["a", "<1>", "b"])):
        stream = TextStream(Pieces([b"a", b"b"]), skip_special=skip)
        assert [stream.push(token) for token in (0, -1, 1)] == expected


@pytest.mark.parametrize(
    ("adds_space", "start_of_text", "expected"),
    [(True, True, ["a", " a", "a"]), (True, False, [" a", " a", "a"]), (False, True, [" a", " a", " a"])],
)
def test_the_space_that_encode_adds_is_taken_away(adds_space: bool, start_of_text: bool, expected: list[str]) -> None:
    stream = TextStream(Pieces([b" a"], adds_space=adds_space), start_of_text=start_of_text)
    assert [text for token in (0, 0, -1, 0) if (text := stream.push(token))] == expected


def matched(parts: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    text = "".join(matcher.push(part) for part in parts) + matcher.flush()
    return text, matcher.stopped


SMALL_TEXT = st.text("ab\u00e9", max_size=5)  # few letters, so that stop strings overlap one another and themselves


@given(st.lists(SMALL_TEXT, max_size=8), st.lists(SMALL_TEXT.filter(bool), max_size=4))
def test_text_ends_before_the_first_stop_string(parts: list[str], stops: list[str]) -> None:
    text = "".join(parts)
    places = [text.find(stop) for stop in stops if stop in text]
    assert matched(parts, stops) == (text[: min(places, default=len(text))], bool(places))


@given(SMALL_TEXT, SMALL_TEXT.filter(bool))
def test_nothing_is_held_back_longer_than_needed(text: str, stop: str) -> None:
    matcher = StopMatcher([stop])
    shown = ""
    for character in text:
        shown += matcher.push(character)
        if matcher.stopped:
            return
    held = text[len(shown) :]
    assert stop.startswith(held) and held != stop


def test_a_longer_stop_string_that_began_earlier_wins() -> None:
    assert matched(["xa", "b", "c", "d"], ["bc", "abcd"]) == ("x", True)
    assert matched(["xa", "b", "c", "e"], ["bc", "abcd"]) == ("xa", True)
    assert matched(["xa", "b", "c"], ["bc", "abcd"]) == ("xa", True)


def test_nothing_passes_after_a_stop_string() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == "a"
    assert matcher.stopped
    assert matcher.push("c") == matcher.flush() == ""


@pytest.mark.parametrize("stops", ["text", [""], ["a", ""], [1]])
def test_stop_strings_must_be_a_list_of_non_empty_strings(stops: object) -> None:
    with pytest.raises(UsageError, match="stop: found"):
        StopMatcher(stops)  # type: ignore[arg-type]
