"""What counts as a sign of life in a stream of server-sent events."""

import pytest

from core.balancing.keepalive import Patience, Pings


@pytest.mark.parametrize(
    "pieces, alive",
    [
        ([b": ping\n\n"], [False]),
        ([b": ping\r\n\r\n"], [False]),
        ([b":\n\n", b":data: x\n\n"], [False, False]),
        ([b"data: 1\n\n"], [True]),
        ([b"data:1\r\n\r\n"], [True]),
        ([b"data\n\n"], [True]),
        ([b": ping\n\ndata: 1\n\n"], [True]),
        ([b"data: 1\n\n: ping\n\n"], [True]),
        ([b": pi", b"ng\n", b"\n", b": ping\n\n"], [False, False, False, False]),
        ([b"da", b"ta: 1", b"23", b"\n\n"], [False, True, True, True]),
        ([b"data: 1\n", b"\n: ping\n\n"], [True, False]),
        ([b"event: ping\ndata: {\"type\": \"ping\"}\n\n"], [False]),
        ([b"event: ping\n", b"data: {}\n", b"data: {}", b"\n\n"], [False, False, False, False]),
        ([b"event:ping\r\ndata: {}\r\n\r\n"], [False]),
        ([b"event: ping\ndata: {}\n\nevent: delta\ndata: {}\n\n"], [True]),
        ([b"event: ping\ndata: {}\n\n", b"data: {}\n\n"], [False, True]),
        ([b"event: pinging\ndata: {}\n\n"], [True]),
        ([b"event: delta\n", b"data: {}\n\n"], [False, True]),
        ([b"id: 7\nretry: 10\n\n"], [False]),
        ([b"data: " + b"x" * 100000, b"y" * 100000, b"z\n\n", b": ping\n\n"], [True, True, True, False]),
        ([b": " + b"x" * 100000, b"data: y" * 100000, b"\n"], [False, False, False]),
        ([b""], [False]),
    ],
)
def test_data_is_a_sign_of_life_and_a_keep_alive_is_none_however_it_is_cut(pieces, alive):
    pings = Pings()
    assert [pings.life_in(piece) for piece in pieces] == alive


@pytest.mark.parametrize(
    "text, between",
    [(b"", True), (b"data: 1\n\n", True), (b"data: 1\r\n\r\n", True), (b": ping\n\n", True), (b"data: 1\n", False),
     (b"data: 1\n\nd", False), (b": pi", False), (b"data: 1\r\n\r", False)],
)  # fmt: skip
def test_it_is_known_where_another_event_can_be_put(text, between):
    for at in range(len(text) + 1):
        pings = Pings()
        pings.life_in(text[:at])
        pings.life_in(text[at:])
        assert pings.between is between


def test_every_cut_of_a_stream_of_pings_brings_no_life_and_every_cut_of_one_with_data_some():
    silent = b": ping\n\nevent: ping\ndata: {}\n\n"
    for at in range(len(silent)):
        pings = Pings()
        assert not pings.life_in(silent[:at]) and not pings.life_in(silent[at:])
        assert pings.life_in(b"data: 1\n\n")


def test_a_patience_counts_what_was_waited_since_the_last_sign():
    patience = Patience(10)
    patience.waited(9)
    assert patience.left == 10  # any byte counts until a stream has begun
    patience.every_byte = False
    patience.waited(6)
    patience.waited(6)
    assert patience.left == 0
    patience.renew()
    assert patience.left == 10
