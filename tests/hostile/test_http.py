"""Bytes on the wire, at the backend and at the balancer: what each must get, and whether the connection is kept.

A row is (name, bytes, what comes): "200 keep" is one answer and a connection that takes the next request, "400 close"
one after which the connection ends; "400/431" where the RFCs leave it open. An error always has the whole envelope.
Sources: RFC 9110, RFC 9112 (sections 3, 5, 6, 7 and 11.2), PortSwigger's and others' tables of request smuggling.
"""

import gzip

import pytest
from conftest import in_parallel

from hostile.enemy import HOST, Line, expect, get, post, talk, unharmed

H = HOST
EMPTY = b'{"content": ""}'
CHUNKED = b"POST /tokenize HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n"


def head(line=b"GET /health HTTP/1.1", *fields):
    """A request's head with a good Host."""
    return line + b"\r\n" + H + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def bare(*fields):
    """A head with these fields only."""
    return b"GET /health HTTP/1.1\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def sized(length, body=EMPTY, *fields):
    """A POST with this Content-Length."""
    return head(b"POST /tokenize HTTP/1.1", b"Content-Length: " + length, *fields) + body


def coded(coding, *fields):
    """A chunked POST with this Transfer-Encoding field."""
    return head(b"POST /tokenize HTTP/1.1", coding, *fields) + b"f\r\n" + EMPTY + b"\r\n0\r\n\r\n"


REQUEST_LINES = [
    ("no request at all", b"hello\r\n\r\n", "400 close"),
    ("HTTP/0.9", b"GET /health\r\n\r\n", "400 close"),
    ("two spaces", b"GET  /health HTTP/1.1\r\n" + H + b"\r\n", "400 close"),
    ("a fourth word", b"GET /health HTTP/1.1 x\r\n" + H + b"\r\n", "400 close"),
    ("a space at the end", b"GET /health HTTP/1.1 \r\n" + H + b"\r\n", "400 close"),
    ("a space before it", b" GET /health HTTP/1.1\r\n" + H + b"\r\n", "400 close"),
    ("tabs", b"GET\t/health\tHTTP/1.1\r\n" + H + b"\r\n", "400 close"),
    ("only a newline", b"GET /health HTTP/1.1\n" + HOST.replace(b"\r", b"") + b"\n", "400 close"),
    ("a bare return", b"GET /health HTTP/1.1\r" + H + b"\r\n", "400 close"),
    ("NUL in the method", b"G\x00T /health HTTP/1.1\r\n" + H + b"\r\n", "400 close"),
    ("colon in the method", b"G:T /health HTTP/1.1\r\n" + H + b"\r\n", "400 close"),
    ("a bracket in the method", b"GET] /health HTTP/1.1\r\n" + H + b"\r\n", "400 close"),
    ("no method", b" /health HTTP/1.1\r\n" + H + b"\r\n", "400 close"),
    ("a method of 30 KB", b"G" * 30000 + b" /health HTTP/1.1\r\n" + H + b"\r\n", "400/405/501 any"),
    ("a method in small letters", head(b"get /health HTTP/1.1"), "405/501 keep"),
    ("an unknown method", head(b"BREW /health HTTP/1.1"), "405/501 keep"),
    ("TRACE echoes nothing", head(b"TRACE /health HTTP/1.1", b"X-Secret: 1"), "405/501 keep"),
    ("version 1.2", head(b"GET /health HTTP/1.2"), "505/200 any"),
    ("version 2.0", head(b"GET /health HTTP/2.0"), "505 close"),
    ("version 0.9", head(b"GET /health HTTP/0.9"), "505 close"),
    ("version 1.10", head(b"GET /health HTTP/1.10"), "400/505 close"),
    ("version 01.1", head(b"GET /health HTTP/01.1"), "400/505 close"),
    ("version in small letters", head(b"GET /health http/1.1"), "400 close"),
    ("another protocol", head(b"GET /health ICY/1.1"), "400 close"),
    ("digits of another script", head("GET /health HTTP/1.١".encode()), "400 close"),
    ("an empty line before it", b"\r\n" + head(), "200 keep"),
    ("nothing but empty lines", b"\r\n\r\n\r\n\r\n", "400 close"),
    ("HTTP/1.0", head(b"GET /health HTTP/1.0"), "200 close"),
    ("HTTP/1.0, kept", head(b"GET /health HTTP/1.0", b"Connection: keep-alive"), "200 keep"),
    ("HTTP/1.0, to be closed", head(b"GET /health HTTP/1.0", b"Connection: keep-alive, close"), "200 close"),
]

TARGETS = [
    ("GET *", head(b"GET * HTTP/1.1"), "400/404 any"),
    ("OPTIONS *", head(b"OPTIONS * HTTP/1.1"), "200/204/400/404/405 any"),
    ("POST *", head(b"POST * HTTP/1.1", b"Content-Length: 2") + b"{}", "400/404/405 any"),
    ("CONNECT to another host", b"CONNECT example.com:443 HTTP/1.1\r\n" + H + b"\r\n", "400/405/501 any"),
    ("an absolute target here", head(b"GET http://127.0.0.1/health HTTP/1.1"), "200 keep"),
    ("an absolute target elsewhere", head(b"GET http://evil.example/health HTTP/1.1"), "200/400/403/421 any"),
    ("an absolute target with an account", head(b"GET http://u:p@127.0.0.1/health HTTP/1.1"), "200/400/403/421 any"),
    ("an absolute target without a host", head(b"GET http:///health HTTP/1.1"), "200/400/403/421 any"),
    ("an absolute target that is no URL", head(b"GET http://[::1/ HTTP/1.1"), "400 close"),
    ("an absolute target with a bad port", head(b"GET http://127.0.0.1:x/health HTTP/1.1"), "200/400/403/421 any"),
    ("another scheme", head(b"GET ftp://127.0.0.1/health HTTP/1.1"), "400 close"),
    ("a file", head(b"GET file:///etc/passwd HTTP/1.1"), "400 close"),
    ("javascript", head(b"GET javascript:alert(1) HTTP/1.1"), "400 close"),
    ("no slash", head(b"GET health HTTP/1.1"), "400 close"),
    ("a query only", head(b"GET ?x HTTP/1.1"), "400 close"),
    ("two slashes", head(b"GET //health HTTP/1.1"), "404 keep"),
    ("another host's name after two slashes", head(b"GET //evil.example/health HTTP/1.1"), "404 keep"),
    ("dots", head(b"GET /../health HTTP/1.1"), "400/404 any"),
    ("up and up", head(b"GET /../../../../etc/passwd HTTP/1.1"), "400/404 any"),
    ("escaped dots", head(b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), "400/404 any"),
    ("dots in a model's name", head(b"GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1"), "400/404 keep"),
    ("backslashes", head(b"GET /..\\..\\etc\\passwd HTTP/1.1"), "400/404 any"),
    ("an escaped NUL", head(b"GET /health%00 HTTP/1.1"), "400/404 keep"),
    ("an escaped NUL in a model's name", head(b"GET /v1/models/demo.gguf%00 HTTP/1.1"), "400/404 keep"),
    ("an escaped newline", head(b"GET /v1/models/a%0d%0aX-Evil:%201 HTTP/1.1"), "400/404 keep"),
    ("half an escape", head(b"GET /v1/models/%f HTTP/1.1"), "400/404 keep"),
    ("no hexadecimal escape", head(b"GET /v1/models/%zz HTTP/1.1"), "400/404 keep"),
    ("an escape that is no UTF-8", head(b"GET /v1/models/%ff%fe HTTP/1.1"), "400/404 keep"),
    ("an escaped surrogate", head(b"GET /v1/models/%ed%a0%80 HTTP/1.1"), "400/404 keep"),
    ("an overlong slash", head(b"GET /v1/models/..%c0%af.. HTTP/1.1"), "400/404 keep"),
    ("an escaped letter", head(b"GET /%68ealth HTTP/1.1"), "200/404 keep"),
    ("an escaped slash", head(b"GET /v1%2fmodels HTTP/1.1"), "200/404 keep"),
    ("a fragment", head(b"GET /health#x HTTP/1.1"), "200/400/404 any"),
    ("a space", head(b"GET /hea lth HTTP/1.1"), "400 close"),
    ("NUL", head(b"GET /hea\x00lth HTTP/1.1"), "400 close"),
    ("an escape character", head(b"GET /hea\x1blth HTTP/1.1"), "400 close"),
    ("DEL", head(b"GET /hea\x7flth HTTP/1.1"), "400 close"),
    ("UTF-8", head("GET /héalth HTTP/1.1".encode()), "400 close"),
    ("a path of 20 KB", head(b"GET /" + b"a" * 20000 + b" HTTP/1.1"), "404/414 any"),
    ("a path of 70 KB", head(b"GET /" + b"a" * 70000 + b" HTTP/1.1"), "414/431 close"),
    ("10,000 query fields", head(b"GET /health?" + b"a&" * 10000 + b" HTTP/1.1"), "200 keep"),
    ("1,000 levels", head(b"GET " + b"/a" * 1000 + b" HTTP/1.1"), "404 keep"),
    ("a query of nonsense", head(b"GET /health?%&=%zz;&&=== HTTP/1.1"), "200 keep"),
    ("fail_on_no_slot of nonsense", head(b"GET /slots?fail_on_no_slot=%ff%00 HTTP/1.1"), "200/503 keep"),
]

FIELDS = [
    ("no colon", head(b"GET /health HTTP/1.1", b"nonsense"), "400 close"),
    ("a space before the colon", head(b"GET /health HTTP/1.1", b"X-A : 1"), "400 close"),
    ("a tab before the colon", head(b"GET /health HTTP/1.1", b"X-A\t: 1"), "400 close"),
    ("a folded line", head(b"GET /health HTTP/1.1", b"X-A: 1", b" 2"), "400 close"),
    ("a folded first line", b"GET /health HTTP/1.1\r\n X-A: 1\r\n" + H + b"\r\n", "400 close"),
    ("no name", head(b"GET /health HTTP/1.1", b": 1"), "400 close"),
    ("a name in brackets", head(b"GET /health HTTP/1.1", b"X(A): 1"), "400 close"),
    ("a name of UTF-8", head(b"GET /health HTTP/1.1", "Ü: 1".encode()), "400 close"),
    ("a NUL in a name", head(b"GET /health HTTP/1.1", b"X\x00A: 1"), "400 close"),
    ("a NUL in a value", head(b"GET /health HTTP/1.1", b"X-A: a\x00b"), "400 close"),
    ("a bare return in a value", head(b"GET /health HTTP/1.1", b"X-A: a\rb"), "400 close"),
    ("a bare newline in a value", head(b"GET /health HTTP/1.1", b"X-A: a\nX-B: b"), "400 close"),
    ("a vertical tab in a value", head(b"GET /health HTTP/1.1", b"X-A: a\x0bb"), "400 close"),
    ("an escape character in a value", head(b"GET /health HTTP/1.1", b"X-A: \x1b[31m"), "400 close"),
    ("DEL in a value", head(b"GET /health HTTP/1.1", b"X-A: \x7f"), "400 close"),
    ("SOH in a value", head(b"GET /health HTTP/1.1", b"X-A: \x01"), "400 close"),
    ("a tab in a value", head(b"GET /health HTTP/1.1", b"X-A: a\tb"), "200 keep"),
    ("bytes over 127 in a value", head(b"GET /health HTTP/1.1", b"X-A: \xff\xfe"), "200 keep"),
    ("an empty value", head(b"GET /health HTTP/1.1", b"X-A:"), "200 keep"),
    ("a value of spaces", head(b"GET /health HTTP/1.1", b"X-A:   \t "), "200 keep"),
    ("the same field 50 times", head(b"GET /health HTTP/1.1", *[b"X-A: 1"] * 50), "200 keep"),
    ("90 fields", head(b"GET /health HTTP/1.1", *[b"X-%d: 1" % n for n in range(90)]), "200 keep"),
    ("200 fields", head(b"GET /health HTTP/1.1", *[b"X-%d: 1" % n for n in range(200)]), "400/431 close"),
    ("5,000 empty fields", head(b"GET /health HTTP/1.1", *[b"a:"] * 5000), "400/431 close"),
    ("a field of 70 KB", head(b"GET /health HTTP/1.1", b"X-A: " + b"a" * 70000), "431 close"),
    ("a name of 70 KB", head(b"GET /health HTTP/1.1", b"a" * 70000 + b": 1"), "431 close"),
    ("70 KB without a line's end", b"GET /" + b"a" * 70000, "414/431 close"),
    ("5 MB of head", head(b"GET /health HTTP/1.1", *[b"X-A: " + b"a" * 5000] * 1000), "431 close"),
    ("an id with a space", head(b"GET /health HTTP/1.1", b"X-Request-Id: a b"), "200 keep"),
    ("an id of 10 KB", head(b"GET /health HTTP/1.1", b"X-Request-Id: " + b"a" * 10000), "200 keep"),
    ("two ids", head(b"GET /health HTTP/1.1", b"X-Request-Id: a", b"X-Request-Id: b"), "200 keep"),
    ("a wrong Basic key", head(b"GET /health HTTP/1.1", b"Authorization: Basic \xff\xff"), "200 keep"),
    ("two keys", head(b"GET /health HTTP/1.1", b"Authorization: Bearer a", b"Authorization: Bearer b"), "400 close"),
    ("two content types", head(b"GET /health HTTP/1.1", b"Content-Type: a/b", b"Content-Type: c/d"), "400 close"),
    ("upgrade to h2c", head(b"GET /health HTTP/1.1", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
                            b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"), "200 keep"),
    ("upgrade to a websocket", head(b"GET /health HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket",
                                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                                    b"Sec-WebSocket-Version: 13"), "200 keep"),
    ("close among others", head(b"GET /health HTTP/1.1", b"Connection: keep-alive, CLOSE ,x"), "200 close"),
    ("Connection names the framing", sized(b"15", EMPTY, b"Connection: content-length"), "200 any"),
    ("Connection names the host", head(b"GET /models HTTP/1.1", b"Connection: host"), "200 keep"),
    ("Connection names what was forwarded",
     head(b"GET /models HTTP/1.1", b"Connection: x-forwarded-for, x-request-id"), "200 keep"),
    ("a forged client address",
     head(b"GET /props HTTP/1.1", b"X-Forwarded-For: 127.0.0.1, \xff, ::1", b"Forwarded: for=_x"), "200 keep"),
    ("another method in a header", head(b"GET /health HTTP/1.1", b"X-HTTP-Method-Override: DELETE"), "200 keep"),
    ("another path in a header",
     head(b"GET /health HTTP/1.1", b"X-Original-URL: /admin/backends", b"X-Rewrite-URL: /admin"), "200 keep"),
    ("Range of nonsense", head(b"GET /health HTTP/1.1", b"Range: bytes=-1,0-,5-4,999999999999999999999-"), "200 keep"),
    ("Accept of nonsense", head(b"GET / HTTP/1.1", b"Accept: " + b"a/b;q=9," * 1000 + b";;q=x"), "200/406 keep"),
]  # fmt: skip

LENGTHS = [
    ("plus", sized(b"+15"), "400 close"),
    ("minus", sized(b"-1"), "400 close"),
    ("minus zero", sized(b"-0"), "400 close"),
    ("hexadecimal", sized(b"0xf"), "400 close"),
    ("a decimal point", sized(b"15.0"), "400 close"),
    ("an exponent", sized(b"15e0"), "400 close"),
    ("an underscore", sized(b"1_5"), "400 close"),
    ("two numbers", sized(b"15 15"), "400 close"),
    ("the same twice in one line", sized(b"15, 15"), "400 close"),
    ("two different ones in one line", sized(b"15, 16"), "400 close"),
    ("nothing", sized(b""), "400 close"),
    ("a superscript two", sized(b"\xb2"), "400 close"),
    ("digits of another script", sized("١٥".encode()), "400 close"),
    ("a quoted number", sized(b'"15"'), "400 close"),
    ("5,000 digits", sized(b"1" * 5000), "400/413 close"),
    ("5,000 zeros and a digit", sized(b"0" * 5000 + b"15"), "200/400/413 any"),
    ("more than 64 bits", sized(b"18446744073709551631"), "400/413 close"),
    ("the largest of 63 bits", sized(b"9223372036854775807"), "400/413 close"),
    ("a terabyte", sized(b"1000000000000", b""), "413 close"),
    ("a zero before it", sized(b"015"), "200 keep"),
    ("twice the same", sized(b"15", EMPTY, b"Content-Length: 15"), "400 close"),
    ("twice", sized(b"15", EMPTY, b"Content-Length: 3"), "400 close"),
    ("with chunks", sized(b"15", b"0\r\n\r\n", b"Transfer-Encoding: chunked"), "400 close"),
    ("no body with POST", head(b"POST /tokenize HTTP/1.1"), "411 any"),
    ("an empty body", sized(b"0", b""), "400 keep"),
    ("GET with a body", head(b"GET /models HTTP/1.1", b"Content-Length: 15") + EMPTY, "200/400 any"),
    ("GET with chunks", head(b"GET /models HTTP/1.1", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n",
     "200/400 any"),
    ("a request in a GET's body is no request",
     head(b"GET /health HTTP/1.1", b"Content-Length: %d" % len(head())) + head(), "200/400 any"),
    ("HEAD", head(b"HEAD /health HTTP/1.1"), "200 keep"),
    ("HEAD of nothing", head(b"HEAD /nothing HTTP/1.1"), "404 keep"),
    ("HEAD of a list", head(b"HEAD /v1/models HTTP/1.1"), "200 keep"),
    ("underscores in its name", sized(b"15", EMPTY, b"Content_Length: 3", b"Transfer_Encoding: chunked"), "200 keep"),
]  # fmt: skip

CODINGS = [
    ("as it should be", coded(b"Transfer-Encoding: chunked"), "200 keep"),
    ("in capitals", coded(b"TRANSFER-ENCODING: CHUNKED"), "200 keep"),
    ("spaces around it", coded(b"Transfer-Encoding:   chunked \t"), "200 keep"),
    ("with gzip", coded(b"Transfer-Encoding: gzip, chunked"), "400/501 close"),
    ("gzip alone", coded(b"Transfer-Encoding: gzip"), "400/501 close"),
    ("twice in one line", coded(b"Transfer-Encoding: chunked, chunked"), "400/501 close"),
    ("twice", coded(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), "400/501 close"),
    ("and identity", coded(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), "400/501 close"),
    ("identity", coded(b"Transfer-Encoding: identity"), "400/501 close"),
    ("a letter before it", coded(b"Transfer-Encoding: xchunked"), "400/501 close"),
    ("a vertical tab before it", coded(b"Transfer-Encoding: \x0bchunked"), "400/501 close"),
    ("a NUL before it", coded(b"Transfer-Encoding: \x00chunked"), "400/501 close"),
    ("a no-break space before it", coded(b"Transfer-Encoding: \xa0chunked"), "400/501 close"),
    ("quoted", coded(b'Transfer-Encoding: "chunked"'), "400/501 close"),
    ("with a parameter", coded(b"Transfer-Encoding: chunked;q=1"), "400/501 close"),
    ("with a comma", coded(b"Transfer-Encoding: chunked,"), "200/400/501 any"),
    ("a comma before it", coded(b"Transfer-Encoding: ,chunked"), "200/400/501 any"),
    ("nothing", coded(b"Transfer-Encoding:"), "400/501 close"),
    ("a space before the colon", coded(b"Transfer-Encoding : chunked"), "400 close"),
    ("a Kelvin sign for its k", coded("Transfer-Encoding: chun\u212aed".encode()), "400/501 close"),
    ("folded", coded(b"Transfer-Encoding:", b" chunked"), "400 close"),
    ("after a folded line", coded(b"X: x", b" x", b"Transfer-Encoding: chunked"), "400 close"),
    ("a bare return before it", coded(b"X: x\rTransfer-Encoding: chunked"), "400 close"),
    ("a bare newline before it", coded(b"X: x\nTransfer-Encoding: chunked"), "400 close"),
    ("with HTTP/1.0", coded(b"Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0"), "400 close"),
    ("a length behind it", coded(b"Transfer-Encoding: chunked", b"Content-Length: 4"), "400 close"),
    ("a length of zero before it", coded(b"Content-Length: 0", b"Transfer-Encoding: chunked"), "400 close"),
    ("a wrong coding and a length", coded(b"Transfer-Encoding: x", b"Content-Length: 4"), "400/501 close"),
    ("TE asks for trailers", coded(b"Transfer-Encoding: chunked", b"TE: trailers"), "200 keep"),
]

END = b"0\r\n\r\n"
BODY = b"f\r\n" + EMPTY + b"\r\n"
CHUNKS = [
    ("an extension", b"f;a=1\r\n" + EMPTY + b"\r\n" + END, "200 keep"),
    ("a quoted extension", b'f;a="b;c"\r\n' + EMPTY + b"\r\n" + END, "200 keep"),
    ("capitals", b"F\r\n" + EMPTY + b"\r\n" + END, "200 keep"),
    ("zeros before the size", b"0000000f\r\n" + EMPTY + b"\r\n0000\r\n\r\n", "200 keep"),
    ("a byte each", b"".join(b"1\r\n%c\r\n" % byte for byte in EMPTY) + END, "200 keep"),
    ("trailers", BODY + b"0\r\nX-A: 1\r\nX-B: 2\r\n\r\n", "200 keep"),
    ("a length in the trailers", BODY + b"0\r\nContent-Length: 99\r\nHost: evil\r\n\r\n", "200/400 any"),
    ("a malformed trailer", BODY + b"0\r\nnonsense\r\n\r\n", "200/400 any"),
    ("1,000 trailers", BODY + b"0\r\n" + b"X: 1\r\n" * 1000 + b"\r\n", "400/431 close"),
    ("a trailer of 200 KB", BODY + b"0\r\nX: " + b"x" * 200000 + b"\r\n\r\n", "400/431 close"),
    ("an extension of 10 KB", b"f;" + b"x" * 10000 + b"\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("a newline in an extension", b"f;a\nb\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("a return in an extension", b"f;a\rb\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("a prefix", b"0xf\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("plus", b"+f\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("minus", b"-f\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("an underscore", b"0_f\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("no number", b"z\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("nothing", b"\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("only an extension", b";f\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("a NUL after the size", b"f\x00\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("a vertical tab after the size", b"f\x0b\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("16 digits", b"ffffffffffffffff\r\n" + EMPTY + b"\r\n" + END, "400/413 close"),
    ("17 digits", b"1000000000000000f\r\n" + EMPTY + b"\r\n" + END, "400/413 close"),
    ("10,000 digits", b"f" * 10000 + b"\r\n" + EMPTY, "400/413 close"),
    ("too long", b"e\r\n" + EMPTY + b"\r\n" + END, "400 close"),
    ("two bytes for the end, but others", b"f\r\n" + EMPTY + b"XX" + END, "400 close"),
    ("a terabyte", b"ffffffffff\r\n", "413 close"),
]

PIPELINES = [
    ("two at once", head() + head(), 2, "200 200 keep"),
    ("200 at once", head() * 200, 200, "200 " * 200 + "keep"),
    ("a bad second one", head() + b"nonsense\r\n\r\n", 2, "200 400 close"),
    ("nothing after an error", b"nonsense\r\n\r\n" + head(), 2, "400 close"),
    ("one after POST", sized(b"15") + head(), 2, "200 200 keep"),
    ("one after chunks", CHUNKED + BODY + END + head(), 2, "200 200 keep"),
    ("one after 404", head(b"GET /nothing HTTP/1.1") + head(), 2, "404 200 keep"),
    ("one after close", head(b"GET /health HTTP/1.1", b"Connection: close") + head(), 2, "200 close"),
    ("one after a refused length", sized(b"1000000000000", b"") + head(), 2, "413 close"),
    ("one hidden by two lengths", sized(b"15", EMPTY, b"Content-Length: 0") + head(), 2, "400 close"),
    ("one hidden by a length and chunks", sized(b"5", END + head(), b"Transfer-Encoding: chunked"), 2, "400 close"),
    ("one hidden by a bad coding", coded(b"Transfer-Encoding: xchunked") + head(), 2, "400/501 close"),
    ("one hidden in an extension", CHUNKED + b"2;\nxx\r\n4\r\n{}\r\n" + END + head(), 2, "400 close"),
    ("one behind a body too long", sized(b"15", EMPTY + head()), 2, "200 200 keep"),
    ("one behind a body too long by a letter", sized(b"14", EMPTY) + head(), 2, "400 400 close"),
    ("an answer to HEAD in between", head(b"HEAD /health HTTP/1.1") + head(b"HEAD /health HTTP/1.1"), 2,
     "200 200 keep"),
]  # fmt: skip

OTHER_PROTOCOLS = [
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0", "400/505 close"),
    ("TLS", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(160)) + b"\r\n\r\n", "400 close"),
    ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "400 close"),
    ("SMTP", b"EHLO evil.example\r\nMAIL FROM:<a@b>\r\n\r\n", "400 close"),
    ("Redis", b"*1\r\n$4\r\nPING\r\n\r\n", "400 close"),
    ("a proxy's line", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + head(), "400 close"),
    ("zeros", b"\0" * 70000, "400/431 close"),
    ("an XML socket", b"<policy-file-request/>\0\r\n\r\n", "400 close"),
]


def named(rows):
    return pytest.mark.parametrize("row", rows, ids=[row[0].replace(" ", "-") for row in rows])


def check(target, data, wanted, answers=1, **how):
    place, survivors = target
    with unharmed(*survivors):
        replies, fate = talk(place.port, data, answers, **how)
        expect(replies, fate, wanted)
    return replies


@named(REQUEST_LINES)
def test_a_request_line(target, row):
    check(target, row[1], row[2])


@named(TARGETS)
def test_a_target(target, row):
    check(target, row[1], row[2])


@named(FIELDS)
def test_a_header_field(target, row):
    check(target, row[1], row[2])


@named(LENGTHS)
def test_a_content_length(target, row):
    check(target, row[1], row[2], head=row[1].startswith(b"HEAD"))


@named(CODINGS)
def test_a_transfer_encoding(target, row):
    check(target, row[1], row[2])


@named(CHUNKS)
def test_a_chunk(target, row):
    check(target, CHUNKED + row[1], row[2])


@named(PIPELINES)
def test_requests_in_a_row(target, row):
    check(target, row[1], row[3], row[2], head=row[1].startswith(b"HEAD"))


@named(OTHER_PROTOCOLS)
def test_another_protocol(target, row):
    check(target, row[1], row[2])


# ----------------------------------------------------------------------------------- bodies as bytes come

JSON = b"Content-Type: application/json\r\n"
CONTENTS = [
    ("gzip that is said", gzip.compress(EMPTY), b"Content-Encoding: gzip\r\n", "400/415"),
    ("gzip that is not said", gzip.compress(EMPTY), b"", "400"),
    ("plain that is called gzip", EMPTY, b"Content-Encoding: gzip\r\n", "400/415"),
    ("an unknown coding", EMPTY, b"Content-Encoding: \xff\r\n", "400/415"),
    ("the identity coding", EMPTY, b"Content-Encoding: identity\r\n", "200"),
    ("UTF-16", EMPTY.decode().encode("utf-16"), b"Content-Type: application/json; charset=utf-16\r\n", "400/415"),
    ("UTF-32", EMPTY.decode().encode("utf-32"), JSON, "400"),
    ("Latin-1", b'{"content": "\xe9"}', b"Content-Type: application/json; charset=latin-1\r\n", "400/415"),
    ("an unknown charset", EMPTY, b"Content-Type: application/json; charset=\xff;;=\r\n", "200/400/415"),
    ("a byte order mark", b"\xef\xbb\xbf" + EMPTY, JSON, "200/400"),
    ("half a character", b'{"content": "\xe3\x81"}', JSON, "400"),
    ("a surrogate in UTF-8", b'{"content": "\xed\xa0\x80"}', JSON, "400"),
    ("an overlong slash", b'{"content": "\xc0\xaf"}', JSON, "400"),
    ("more than Unicode", b'{"content": "\xf4\x90\x80\x80"}', JSON, "400"),
    ("half a surrogate pair", b'{"content": "\\ud800"}', JSON, "400"),
    ("the pair the wrong way round", b'{"content": "\\udc00\\ud800"}', JSON, "400"),
    ("half a pair as a name", b'{"content": "", "\\udfff": 1}', JSON, "400"),
    ("a form", b"content=hello", b"Content-Type: application/x-www-form-urlencoded\r\n", "400/415"),
    ("JSON that curl -d calls a form", EMPTY, b"Content-Type: application/x-www-form-urlencoded\r\n", "200"),
    ("a multipart form", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n',
     b"Content-Type: multipart/form-data; boundary=x\r\n", "400/415"),
    ("XML", b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]><x>&y;</x>",
     b"Content-Type: text/xml\r\n", "400/415"),
    ("two objects", EMPTY + EMPTY, JSON, "400"),
    ("a comma too many", b'{"content": "",}', JSON, "400"),
    ("a comment", b'{"content": "" /* hi */}', JSON, "400"),
    ("single quotes", b"{'content': ''}", JSON, "400"),
    ("no quotes", b'{content: ""}', JSON, "400"),
    ("a newline in a string", b'{"content": "a\nb"}', JSON, "400"),
    ("a NUL in a string", b'{"content": "a\x00b"}', JSON, "400"),
    ("a NUL behind it", EMPTY + b"\x00", JSON, "400"),
    ("a bad escape", b'{"content": "\\x41"}', JSON, "400"),
    ("half an escape", b'{"content": "\\u12"}', JSON, "400"),
    ("cut short", EMPTY[:-1], JSON, "400"),
    ("an array", b"[]", JSON, "400"),
    ("a string", b'"content"', JSON, "400"),
    ("a number", b"1", JSON, "400"),
    ("null", b"null", JSON, "400"),
    ("nothing but spaces", b" \t\r\n" * 50, JSON, "400"),
    ("NaN", b'{"content": NaN}', JSON, "400"),
    ("Infinity", b'{"x": Infinity, "content": ""}', JSON, "400"),
    ("minus Infinity", b'{"x": -Infinity, "content": ""}', JSON, "400"),
    ("a number too large to be one", b'{"x": 1e999, "content": ""}', JSON, "200/400"),
    ("a number of 100,000 digits", b'{"content": "", "x": ' + b"1" * 100000 + b"}", JSON, "200/400"),
    ("a fraction of 100,000 digits", b'{"content": "", "x": 0.' + b"1" * 100000 + b"}", JSON, "200/400"),
    ("an exponent of 100,000 digits", b'{"content": "", "x": 1e' + b"1" * 100000 + b"}", JSON, "200/400"),
    ("the same name twice", b'{"content": [], "content": ""}', JSON, "200/400"),
    ("100,000 names", b'{"content": ""' + b"".join(b',"%d":0' % n for n in range(100000)) + b"}", JSON, "200/400"),
    ("names like Python's", b'{"content": "", "__proto__": {}, "__class__": 1, "constructor": {}}', JSON, "200"),
    ("900 levels", b'{"content": "", "x": ' + b"[" * 900 + b"]" * 900 + b"}", JSON, "200/400"),
    ("100,000 levels of arrays", b'{"content": "", "x": ' + b"[" * 100000 + b"]" * 100000 + b"}", JSON, "400"),
    ("100,000 levels of objects", b'{"x":' * 100000 + b"1" + b"}" * 100000, JSON, "400"),
    ("100,000 levels that nobody closes", b"[" * 100000, JSON, "400"),
    ("100,000 levels in an unknown field", b'{"content": "", "x": ' + b'{"a":[' * 50000 + b"]}" * 50000 + b"}", JSON,
     "400"),
    ("20 MB", b" " * (20 << 20), JSON, "400/413"),
]  # fmt: skip


@named(CONTENTS)
def test_a_body_as_it_comes(target, row):
    place, survivors = target
    name, body, headers, wanted = row
    with unharmed(*survivors):
        expect([post(place.port, "/tokenize", body, headers)], "close", wanted + " close")


# ------------------------------------------------------------------------------- what ends early or waits

HALVES = [
    ("after a whole request", head(), "200 close"),
    ("after a whole POST", sized(b"15"), "200 close"),
    ("after two requests", head() + head(), "200 200 close"),
    ("in a head", b"GET /health HT", "close"),
    ("in a header", b"GET /health HTTP/1.1\r\nHost: 127", "close"),
    ("in a body", sized(b"15", EMPTY[:5]), "close"),
    ("in a chunk", CHUNKED + b"f\r\n" + EMPTY[:5], "close"),
    ("in a chunk's size", CHUNKED + b"f", "close"),
    ("before the last chunk", CHUNKED + BODY, "close"),
    ("in the trailers", CHUNKED + BODY + b"0\r\nX: 1\r\n", "close"),
    ("before everything", b"", "close"),
]


@named(HALVES)
def test_a_client_that_sends_no_more(target, row):
    place, survivors = target
    wanted = row[2].split()
    with unharmed(*survivors):
        replies, fate = talk(place.port, row[1], max(1, len(wanted) - 1), half=True)
        if len(wanted) == 1:  # an error may be told, or nothing
            assert fate == "close" and all(400 <= reply.status < 500 for reply in replies)
        else:
            expect(replies, fate, row[2])


def test_a_generation_is_answered_though_the_client_has_closed_its_sending_side(target):
    body = b'{"model_name": "demo.gguf", "prompt": "Once", "max_tokens": 8}'
    data = head(b"POST /generate HTTP/1.1", b"Content-Length: %d" % len(body)) + body
    check(target, data, "200 close", half=True)


@named([row for row in HALVES if row[1]])
def test_a_client_that_resets(target, row):
    place, survivors = target
    with unharmed(*survivors):
        with Line(place.port) as line:
            line.send(row[1])
            line.reset()


WAITING = [
    ("in a head", b"GET /health HTTP/1.1\r\nHos", "408 close"),
    ("before the empty line", b"GET /health HTTP/1.1\r\n" + H, "408 close"),
    ("in the second head", head() + b"GET /he", "200 408 close"),
    ("in a body", sized(b"15", EMPTY[:5]), "408 close"),
    ("in a chunk", CHUNKED + b"f\r\n" + EMPTY[:5], "408 close"),
    ("before the last chunk", CHUNKED + BODY, "408 close"),
    ("after chunks with newlines only", CHUNKED + b"f\n" + EMPTY + b"\n0\n\n", "400/408 close"),
]


def test_clients_that_send_no_more_and_wait(target):
    """All at once, since each takes as long as a client may take."""
    place, survivors = target
    with unharmed(*survivors):
        results = in_parallel(lambda row: talk(place.port, row[1], len(row[2].split()) - 1), WAITING)
        for row, result in zip(WAITING, results):
            assert not isinstance(result, Exception), (row[0], result)
            expect(result[0], result[1], row[2])


EXPECTATIONS = [
    ("a body after the go-ahead", b"Expect: 100-continue", b"15", "200 keep"),
    ("in capitals", b"EXPECT: 100-CONTINUE", b"15", "200 keep"),
    ("an unknown one", b"Expect: the-unexpected", b"15", "200/417 any"),
    ("of a body that is too large", b"Expect: 100-continue", b"1000000000000", "413 close"),
]


@named(EXPECTATIONS)
def test_an_expectation(target, row):
    place, survivors = target
    name, field, length, wanted = row
    with unharmed(*survivors), Line(place.port) as line:
        line.send(head(b"POST /tokenize HTTP/1.1", b"Content-Length: " + length, field))
        if b"unexpected" in field:
            line.send(EMPTY)
        reply = line.reply()
        if reply.status == 100:
            line.send(EMPTY)
            reply = line.reply()
        expect([reply], line.fate(), wanted)


def test_no_answer_echoes_what_is_large_or_lets_a_request_write_headers(target):
    place, survivors = target
    evil = b"%0d%0aSet-Cookie:%20a=b%0d%0a%0d%0a<script>"
    with unharmed(*survivors):
        for path in (b"/" + evil, b"/v1/models/" + evil, b"/health?" + evil):
            replies, _ = talk(place.port, head(b"GET " + path + b" HTTP/1.1"))
            assert not replies[0].header("set-cookie")
        large = get(place.port, "/v1/models/" + "a" * 20000)
        assert large.status in (404, 414) and len(large.body) < 4096
        name = {"model": "b" * (5 << 20), "messages": [{"role": "user", "content": "x"}]}
        large = post(place.port, "/v1/chat/completions", name)
        assert large.status in (400, 404, 413) and len(large.body) < 4096


def test_an_id_that_is_no_id_is_not_taken_over(target):
    place, survivors = target
    with unharmed(*survivors):
        for bad in (b"a b", b"a" * 5000, b"\xff\xfe", b"a, b", b"a;b=\x80"):
            given = get(place.port, "/health", b"X-Request-Id: " + bad + b"\r\n").header("x-request-id")
            assert given and (given.encode("latin-1") != bad or (b" " not in bad and b"\xff" not in bad)), given
        assert get(place.port, "/health", b"X-Request-Id: mine-1\r\n").header("x-request-id") == "mine-1"


def test_metrics_stay_bounded_whatever_is_asked_for(target):
    place, survivors = target
    with unharmed(*survivors):
        get(place.port, "/metrics")
        before = len(get(place.port, "/metrics").body)
        for n in range(60):
            get(place.port, '/"%d\\' % n, method=b"M%d" % n)
            post(place.port, "/v1/completions", {"model": "no-%d" % n, "prompt": "x"}, b"X-Api-Key: %d\r\n" % n)
            get(place.port, "/v1/models/%d" % n)
        page = get(place.port, "/metrics").body
        assert len(page) < before + 6000
