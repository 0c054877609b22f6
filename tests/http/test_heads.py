"""Header lines, as the server and the client read them: by one parser, each with an answer of its own to a refusal."""

import pytest

from core.errors import APIError
from core.http.answers import Answer
from core.http.failures import Broken
from core.http.heads import MAX_HEADERS, Malformed, TooManyHeaders, parse_headers, tokens, whole_number
from core.http.outgoing import OutgoingConnection, plain_wait
from core.http.requesthead import request_headers

MALFORMED = [
    "no colon", ": no name", "X A: 1", "X-A : 1", " folded", "", "X\xe9: 1", "X\0: 1",
    "X: a\rb", "X: a\nb", "X: a\0b", "X: \x1b[31m", "X: \x7f",
]  # fmt: skip


def answer_of(*lines):
    """Return a client's answer whose head holds these lines."""
    connection = OutgoingConnection(None)
    connection.buffer += "\r\n".join(("HTTP/1.1 204 No Content",) + lines + ("", "")).encode("latin-1")
    answer = Answer(connection, plain_wait, 1.0, float("inf"), lambda used: None)
    answer.read_head("GET")
    return answer


def test_headers_are_kept_as_sent_and_joined_by_name():
    sent, by_name = parse_headers(["X-Mine:  a\tb \t", "x-mine:c", "Empty:", "Latin: \xe9\xff"])
    assert sent == [("X-Mine", "a\tb"), ("x-mine", "c"), ("Empty", ""), ("Latin", "\xe9\xff")]
    assert by_name == {"x-mine": "a\tb, c", "empty": "", "latin": "\xe9\xff"}


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_line_is_told_with_its_text(line):
    with pytest.raises(Malformed) as caught:
        parse_headers(["Host: a", line])
    assert caught.value.line == line


@pytest.mark.parametrize("line", [line for line in MALFORMED if line])
def test_the_server_and_the_client_refuse_the_same_lines(line):
    with pytest.raises(APIError) as refused:
        request_headers(["Host: a", line])
    assert (refused.value.status, refused.value.code) == (400, "bad_http")
    with pytest.raises(Broken):
        answer_of("Host: a", line)


def test_the_server_and_the_client_take_the_same_number_of_lines():
    lines = ["X-%d: 1" % number for number in range(MAX_HEADERS)]
    assert len(request_headers(lines)) == len(answer_of(*lines).headers) == MAX_HEADERS
    with pytest.raises(TooManyHeaders):
        parse_headers(lines + ["X: 1"])
    with pytest.raises(APIError) as refused:
        request_headers(lines + ["X: 1"])
    assert (refused.value.status, refused.value.code) == (431, "headers_too_large")
    with pytest.raises(Broken):
        answer_of(*lines + ["X: 1"])


def test_what_a_request_may_hold_once_an_answer_may_hold_twice():
    twice = ["Content-Type: a", "content-type: b"]
    with pytest.raises(APIError):
        request_headers(twice)
    assert answer_of(*twice).header("content-type") == "a, b"


def test_a_long_line_is_read_like_a_short_one():
    name, value = "X" * 300, "v" * 5000
    assert parse_headers(["%s: %s" % (name, value)]) == ([(name, value)], {name.lower(): value})


def test_a_list_is_read_without_its_spaces_and_case():
    assert tokens(" Close ,keep-alive") == {"close", "keep-alive"}


@pytest.mark.parametrize("text, number", [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_a_whole_number_has_up_to_18_digits(text, number):
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1 ", "0x1", "1_0", "\xb2", "1.0", "1,1", "9" * 19])
def test_anything_else_is_no_whole_number(text):
    assert whole_number(text) is None
