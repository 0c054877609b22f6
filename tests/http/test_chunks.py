"""The chunked coding, as the server and the client read it: by one decoder, each with rules of its own."""

import pytest

from core.http import answers, bodies
from core.http.chunks import BadChunk, ChunksTooLarge, Dechunker, decoded

BOTH = pytest.mark.parametrize("rules", [bodies.RULES, answers.RULES], ids=["server", "client"])


def whole(rules, data, cut=0, most=float("inf")):
    """Return the body that coded data hold, which come in pieces of `cut` bytes, and the bytes behind it."""
    cut = cut or len(data)
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    buffer = bytearray()
    body = b"".join(decoded(buffer, Dechunker(rules, most), lambda: buffer.extend(pieces.pop(0))))
    return body, bytes(buffer) + b"".join(pieces)


@BOTH
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 1000, 0])
def test_chunks_are_decoded_however_they_are_cut(rules, cut):
    coded, body = b"", b""
    for size in (1, 2, 3, 200, 70000):
        coded += b"%x\r\n%b\r\n" % (size, b"\r" * size)
        body += b"\r" * size
    coded += b"0\r\n\r\n"
    assert whole(rules, coded, cut) == (body, b"")


@BOTH
@pytest.mark.parametrize(
    "coded",
    [
        b"5\r\nhello\r\n0\r\n\r\n",
        b" 5 \r\nhello\r\n0\r\n\r\n",
        b"000000000000005\r\nhello\r\n000\r\n\r\n",
        b'2;a="b;c"\r\nhe\r\n3\t;x\r\nllo\r\n0;last\r\n\r\n',
        b"5\r\nhello\r\n0\r\nX: y\r\nnonsense\r\n\r\n",
        b"5;" + b"x" * 254 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 99 + b"\r\n",
    ],
)
def test_extensions_and_trailers_are_dropped_and_what_follows_is_left(rules, coded):
    assert whole(rules, coded + b"GET /") == (b"hello", b"GET /")


@BOTH
@pytest.mark.parametrize(
    "coded",
    [
        b"\r\n",
        b";x\r\n",
        b"g\r\n",
        b"0x5\r\n",
        b"+5\r\n",
        b"5_0\r\n",
        b"5\n\r\n",
        b"5;a\nb\r\n",
        b"5;a\rb\r\n",
        b"5\x0b\r\n",
        b"00000000000000000\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\n0\r\n",
        b"5;" + b"x" * 5000,
        b"5;" + b"x" * 5000 + b"\r\n",
        b"0\r\nX: " + b"x" * 40000,
        b"0\r\n" + b"X: y\r\n" * 100,
    ],
)
@pytest.mark.parametrize("cut", [1000, 0])
def test_what_is_not_in_the_coding_is_refused(rules, coded, cut):
    with pytest.raises(BadChunk):
        whole(rules, coded, cut)


def test_a_wrong_size_is_told_with_its_line():
    with pytest.raises(BadChunk) as caught:
        whole(bodies.RULES, b"1\r\na\r\nzz;x\r\n")
    assert caught.value.line == b"zz;x"


@pytest.mark.parametrize(
    "line, server, client",
    [
        (b"5;\0", True, False),  # a control character
        (b"0000000000000005", True, False),  # 16 digits
        (b"5;" + b"x" * 255, False, True),  # 257 bytes
        (b"5;" + b"x" * 4094, False, True),  # 4,096 bytes
        (b"5;" + b"x" * 4095, False, False),
    ],
)
def test_each_side_has_its_own_bounds_of_a_size_line(line, server, client):
    for rules, taken in ((bodies.RULES, server), (answers.RULES, client)):
        coded = line + b"\r\nhello\r\n0\r\n\r\n"
        if taken:
            assert whole(rules, coded) == (b"hello", b"")
        else:
            with pytest.raises(BadChunk):
                whole(rules, coded)


def test_each_side_has_its_own_bound_of_a_trailer():
    coded = b"0\r\nX: " + b"x" * 4094 + b"\r\n\r\n"
    assert whole(bodies.RULES, coded) == (b"", b"")
    with pytest.raises(BadChunk):
        whole(answers.RULES, coded)


@BOTH
def test_chunks_that_hold_more_than_wanted_are_refused_before_they_come(rules):
    assert whole(rules, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", most=5) == (b"abcde", b"")
    with pytest.raises(ChunksTooLarge):
        whole(rules, b"3\r\nabc\r\n3\r\n", most=5)


@BOTH
def test_a_body_that_is_too_slow_ends_with_what_its_reader_raises(rules):
    with pytest.raises(IndexError):  # no more pieces
        whole(rules, b"5\r\nhel")
