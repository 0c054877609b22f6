"""TextOut: whole characters only, never a part of a stop string, and nothing lost in between."""
import random

import pytest

from core.engine.text import TextOut


def run(pieces, stops=()):
    """Push the pieces; return what each one released, and what finish() did."""
    out = TextOut(stops)
    return [out.push(piece if isinstance(piece, bytes) else piece.encode("utf-8")) for piece in pieces] + [out.finish()]


def singles(text):
    """A text's bytes, one a piece."""
    return [bytes([byte]) for byte in text.encode("utf-8")]


def test_plain_text_passes_at_once():
    assert run(["Hello", ", ", "world"]) == ["Hello", ", ", "world", ""]


def test_an_empty_piece_releases_nothing():
    assert run(["a", b"", "b"]) == ["a", "", "b", ""]


@pytest.mark.parametrize("text", ["日本語", "🙂", "👩‍👩‍👧 ok", "naïve", "𝄞", "\ufeffa"])
def test_a_character_split_over_tokens_comes_out_whole_and_once(text):
    released = run(singles(text))
    assert "".join(released) == text
    assert set(released) <= set(text) | {""}
    assert released[-1] == ""  # nothing complete was held back to the end


def test_a_character_comes_out_with_its_last_byte():
    assert run([b"a\xe6", b"\x97", b"\xa5b"]) == ["a", "", "日b", ""]


@pytest.mark.parametrize(
    "pieces, text",
    [
        ([b"a\xffb"], "a\ufffdb"),
        ([b"\xe6\x97", b"x"], "\ufffdx"),
        ([b"\xe6", b"\x97"], "\ufffd"),
        ([b"\x80", b"\x80"], "\ufffd\ufffd"),
        ([b"\xf0\x9f\x99"], "\ufffd"),
        ([b"ok\xc0\xaf"], "ok\ufffd\ufffd"),
    ],
)
def test_invalid_bytes_become_replacement_characters(pieces, text):
    assert "".join(run(pieces)) == text


@pytest.mark.parametrize(
    "pieces, stops, released",
    [
        (["Hello STOP world"], ["STOP"], ["Hello ", ""]),
        (["Hello S", "TO", "P world"], ["STOP"], ["Hello ", "", "", ""]),
        (["STOP"], ["STOP"], ["", ""]),
        (["a", "aab"], ["aab"], ["", "a", ""]),
        (["aaab"], ["aab"], ["a", ""]),
        (["a", "a", "a", "b"], ["aab"], ["", "", "a", "", ""]),
        (["ababac", "x"], ["abac"], ["ab", "", ""]),
        (["one\n", "\ntwo"], ["\n\n"], ["one", "", ""]),
        (["one\n", "two"], ["\n\n"], ["one", "\ntwo", ""]),
        (["second then first"], ["first", "second"], ["", ""]),
        (["a second then first"], ["first", "second"], ["a ", ""]),
        (["x<|im", "_end|>y"], ["<|im_end|>", "<|eot|>"], ["x", "", ""]),
        (["日本", "語だ"], ["本語"], ["日", "", ""]),
        ([b"x\xe6", b"\x97", b"\xa5y"], ["日"], ["x", "", "", ""]),
        (["a\ufffdb"], ["\ufffd"], ["a", ""]),
        (["x"], ["x", "x"], ["", ""]),
    ],
)
def test_the_text_ends_before_the_first_stop_string(pieces, stops, released):
    assert run(pieces, stops) == released


def test_what_may_begin_a_stop_string_is_held_back_and_nothing_more():
    out = TextOut(["</s>", "\n\n"])
    assert out.push(b"x <") == "x "
    assert out.push(b"/") == ""
    assert out.push(b"b>\n") == "</b>"
    assert out.push(b"y") == "\ny"
    assert not out.stopped


def test_what_was_held_back_is_released_at_the_end():
    out = TextOut(["STOP"])
    assert out.push(b"go ST") == "go "
    assert out.finish() == "ST"
    assert not out.stopped
    assert out.finish() == ""  # once


def test_a_character_cut_short_is_released_at_the_end_after_what_was_held_back():
    out = TextOut(["STOP"])
    assert out.push(b"ST\xe6\x97") == ""
    assert out.finish() == "ST\ufffd"


def test_nothing_comes_after_a_stop_string():
    out = TextOut(["."])
    assert out.push(b"One. Two") == "One"
    assert out.stopped
    assert [out.push(b" Three."), out.push(b"\xe6"), out.finish(), out.finish()] == [""] * 4


def test_it_has_stopped_once_the_whole_stop_string_has_come():
    out = TextOut(["ab"])
    out.push(b"a")
    assert not out.stopped
    out.push(b"b")
    assert out.stopped


def test_an_empty_stop_string_stops_nothing():
    assert run(["ab", "c"], [""]) == ["ab", "c", ""]


@pytest.mark.parametrize("stops", [["abcd", "bc"], ["bc", "abcd"], ["abc", "bc"], ["aab", "ab", "b"]])
@pytest.mark.parametrize("text", ["abcd", "xabcx", "aab"])
def test_where_a_text_stops_does_not_depend_on_its_tokens(stops, text):
    assert "".join(run(singles(text), stops)) == "".join(run([text], stops))


def first_stop(text, stops):
    """The reference: the text up to the first stop string."""
    return text[: min([at for at in (text.find(stop) for stop in stops) if at >= 0], default=len(text))]


@pytest.mark.parametrize("seed", range(20))
def test_however_a_text_is_split_what_comes_out_is_the_text_up_to_the_first_stop(seed):
    rng = random.Random(seed)
    for _ in range(100):
        text = "".join(rng.choice("aab日🙂") for _ in range(rng.randrange(30)))
        stops = ["".join(rng.choice("aab日🙂") for _ in range(rng.randrange(1, 6))) for _ in range(rng.randrange(4))]
        stops = [one for one in stops if not any(other in one[1:] for other in stops)]  # nested: the test above
        data, pieces = text.encode("utf-8"), []
        while data:
            size = rng.randrange(1, 8)
            pieces.append(data[:size])
            data = data[size:]
        out = TextOut(stops)
        shown = "".join(out.push(piece) for piece in pieces) + out.finish()
        assert shown == first_stop(text, stops), (text, stops, pieces)
        assert out.stopped == any(stop in text for stop in stops)
