"""Models from the network: what is chosen, how a cut download goes on, and what is done about servers that lie."""

import collections
import fcntl
import hashlib
import os
import shutil
import signal
import struct

import pytest
from conftest import MODELS, ROOT, wait_until
from filehost import Host, say, status
from terminals import Terminal, screen

from core.commands import pull, web
from core.commands.download import BadDownload, Download, Watcher
from core.commands.hub import (
    Hub,
    Link,
    NoChoice,
    Offer,
    RemoteFile,
    Repository,
    parse,
    pick,
    quantization_of,
    safe_name,
)
from core.commands.web import Web, WebError

with open(os.path.join(MODELS, "demo.gguf"), "rb") as _file:
    DEMO = _file.read()
SHA256 = hashlib.sha256(DEMO).hexdigest()
HALF = len(DEMO) // 2


@pytest.fixture
def host():
    made = Host()
    yield made
    made.close()


@pytest.fixture
def other_host():
    made = Host()
    yield made
    made.close()


class Notes(Watcher):
    """Remembers what a download told."""

    def __init__(self):
        self.notes, self.begun = [], []

    def begin(self, name, done, total):
        self.begun.append((done, total))

    def note(self, sentence):
        self.notes.append(sentence)


class Fetching:
    """A download of /f.gguf, the demo model, in a folder of its own."""

    def __init__(self, host, folder, size=len(DEMO), sha256=SHA256, timeout=10.0, data=DEMO, **web):
        host.files["/f.gguf"] = data
        self.folder, self.watcher, self.slept = folder, Notes(), []
        self.file = RemoteFile("f.gguf", host.url + "/f.gguf", size, sha256)
        self.download = Download(Web(timeout=timeout, **web), self.file, str(folder), self.watcher, self.slept.append)

    def run(self):
        return self.download.run()

    def fails(self):
        with pytest.raises(BadDownload) as raised:
            self.run()
        assert "f.gguf" not in self.left()
        return str(raised.value)

    def left(self):
        return sorted(os.listdir(str(self.folder)))

    def is_whole(self):
        return self.left() == ["f.gguf"] and (self.folder / "f.gguf").read_bytes() == DEMO


# ------------------------------------------------------------------------------------------------ what is meant


@pytest.mark.parametrize(
    "text, meant",
    [
        ("Qwen/Qwen3-4B-GGUF:Q4_K_M", Repository("Qwen/Qwen3-4B-GGUF", "Q4_K_M")),
        ("Qwen/Qwen3-4B-GGUF", Repository("Qwen/Qwen3-4B-GGUF")),
        ("hf.co/Qwen/Qwen3-4B-GGUF:q4_k_m", Repository("Qwen/Qwen3-4B-GGUF", "q4_k_m")),
        ("https://huggingface.co/Qwen/Qwen3-4B-GGUF", Repository("Qwen/Qwen3-4B-GGUF")),
        (
            "https://huggingface.co/a/b/blob/main/x y.gguf".replace(" ", "%20"),
            Link("https://huggingface.co/a/b/resolve/main/x%20y.gguf"),
        ),
        ("https://example.com/a/b.gguf?x=1", Link("https://example.com/a/b.gguf?x=1")),
    ],
)
def test_a_repository_or_a_url_is_understood(text, meant):
    assert parse(text) == meant


@pytest.mark.parametrize(
    "text",
    ["", "model", "a/b/c", "../../etc", "a/..", "file:///etc/passwd", "ftp://a/b.gguf", "http://a b/c", "http://:80/"],
)
def test_what_is_neither_is_refused(text):
    with pytest.raises(NoChoice):
        parse(text)


@pytest.mark.parametrize(
    "path",
    ["..", "a/..", ".gguf", "a/.hidden.gguf", "C:\\x.gguf", "a\\..\\b.gguf", "x\n.gguf", "\x1b[2J.gguf", "x.txt",
     "-rf.gguf", "a\u202e.gguf", "nul.gguf", "x" * 300 + ".gguf", "a:b.gguf", ""],
)  # fmt: skip
def test_names_from_the_network_that_could_name_something_else_are_refused(path):
    with pytest.raises(NoChoice):
        safe_name(path)


@pytest.mark.parametrize("path", ["/etc/m.gguf", "../../m.gguf", "a/b/m.gguf", "m.gguf"])
def test_only_the_last_part_of_a_path_from_the_network_counts(path):
    assert safe_name(path) == "m.gguf"


@pytest.mark.parametrize(
    "stem, quantization",
    [
        ("Qwen3-4B-Q4_K_M", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m", "Q4_K_M"),
        ("mistral-7b-v0.1.Q5_K_S", "Q5_K_S"),
        ("Qwen3-4B-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("Llama-3-8B-fp16", "F16"),
        ("Llama-3-8B-BF16", "BF16"),
        ("x-IQ4_XS", "IQ4_XS"),
        ("Q8_0/model", "Q8_0"),
        ("model", ""),
    ],
)
def test_a_files_name_tells_its_quantization(stem, quantization):
    assert quantization_of(stem) == quantization


def offer(path, size=1):
    return Offer(path, quantization_of(path), (RemoteFile(path + ".gguf", "http://x/" + path, size),))


def test_without_a_quantization_the_most_sensible_one_is_taken():
    offers = [offer("m-" + each) for each in ("Q2_K", "Q8_0", "Q5_K_M", "Q4_K_M", "F16")]
    assert pick(offers, "").quantization == "Q4_K_M"
    assert pick([each for each in offers if each.quantization != "Q4_K_M"], "").quantization == "Q5_K_M"
    assert pick([offer("big", 9), offer("small", 2)], "").path == "small"


def test_a_quantization_is_found_in_any_case_and_a_file_by_its_name():
    offers = [offer("m-Q4_K_M"), offer("m-Q8_0"), offer("n-Q8_0")]
    assert pick(offers, "q4_k_m").path == "m-Q4_K_M"
    assert pick(offers, "n-Q8_0.gguf").path == "n-Q8_0"


def test_what_is_not_there_or_not_clear_is_refused_with_what_there_is():
    offers = [offer("m-Q4_K_M", 10**9), offer("m-Q8_0"), offer("n-Q8_0")]
    with pytest.raises(NoChoice, match=r"Q4_K_M \(1\.0 GB\)"):
        pick(offers, "Q3_K_M")
    with pytest.raises(NoChoice, match="m-Q8_0.gguf, n-Q8_0.gguf"):
        pick(offers, "Q8_0")


def test_the_parts_of_a_split_file_are_one_offer_and_companions_of_models_are_none(host):
    parts = {"Q8_0_SLASH_m-Q8_0-%05d-of-00003__gguf" % number: b"GGUF" for number in (2, 1, 3)}
    host.add("o/m", **dict(parts, mmproj_F16__gguf=b"GGUF", README__md=b""))
    listed = host.repositories["/api/models/o/m/revision/main"]["siblings"]
    host.list_as("o/m", listed + [{"rfilename": "mmproj-F16.gguf"}, 3, {}])
    (only,) = [each for each in Hub(Web(), host.url).offers("o/m") if each.quantization == "Q8_0"]
    assert [each.name for each in only.files] == ["m-Q8_0-%05d-of-00003.gguf" % number for number in (1, 2, 3)]


def test_a_split_file_that_lacks_parts_is_refused(host):
    host.list_as("o/m", [{"rfilename": "m-00001-of-00002.gguf"}])
    with pytest.raises(NoChoice, match="1 of 2"):
        Hub(Web(), host.url).offers("o/m")


@pytest.mark.parametrize(
    "facts", [[], "x", {"siblings": 3}, {"siblings": []}, {"siblings": [{"rfilename": "../\x00.gguf"}]}]
)
def test_a_list_of_files_that_makes_no_sense_is_refused(host, facts):
    host.repositories["/api/models/o/m/revision/main"] = facts
    with pytest.raises((NoChoice, WebError)):
        Hub(Web(), host.url).offers("o/m")


@pytest.mark.parametrize(
    "number, said",
    [(401, "set HF_TOKEN"), (403, "accept its terms at"), (404, "there is no repository"), (429, "too many requests")],
)
def test_a_repository_that_is_refused_says_what_to_do(host, number, said):
    host.api_tricks = [status(number)]
    with pytest.raises(WebError, match=said):
        Hub(Web(), host.url).offers("o/m")


def test_a_commit_that_is_none_never_becomes_a_part_of_a_url(host):
    host.list_as("o/m", [{"rfilename": "m.gguf"}], commit="../../../evil")
    assert "/o/m/resolve/main/m.gguf" in Hub(Web(), host.url).offers("o/m")[0].files[0].url


# ------------------------------------------------------------------------------------------------ downloads


def test_a_file_comes_whole_and_nothing_else_is_left(host, tmp_path):
    fetching = Fetching(host, tmp_path)
    assert fetching.run() is True and fetching.is_whole()


def test_a_cut_connection_is_resumed_where_it_was(host, tmp_path):
    fetching = Fetching(host, tmp_path)
    host.tricks = [host.cut(HALF), host.cut(1000)]
    assert fetching.run() and fetching.is_whole()
    asked = [(each.get("Range"), each.get("If-Range")) for each in host.requests_for("f.gguf")]
    assert asked == [
        (None, None), ("bytes=%d-" % HALF, '"first"'), ("bytes=%d-" % (HALF + 1000), '"first"'),
    ]  # fmt: skip
    assert "cut after" in fetching.watcher.notes[0] and fetching.slept == [1, 1]


def test_a_connection_that_stands_still_is_given_up_and_resumed(host, tmp_path):
    fetching = Fetching(host, tmp_path, timeout=0.2)
    host.tricks = [host.stall(HALF)]
    assert fetching.run() and fetching.is_whole()
    assert "sends nothing any more" in fetching.watcher.notes[0]


def test_another_run_goes_on_where_one_was_ended(host, tmp_path):
    host.tricks = [host.cut(HALF)] + [status(503)] * 9
    told = Fetching(host, tmp_path).fails()
    assert "are kept: repeat this to go on" in told and (tmp_path / "f.gguf.part").stat().st_size == HALF
    host.tricks, host.seen[:] = [], []
    fetching = Fetching(host, tmp_path)
    assert fetching.download.left == len(DEMO) - HALF
    assert fetching.run() and fetching.is_whole()
    assert [each["Range"] for each in host.requests_for("f.gguf")] == ["bytes=%d-" % HALF]


def test_a_file_that_has_changed_meanwhile_is_fetched_anew(host, tmp_path):
    fetching = Fetching(host, tmp_path, size=None, sha256="")

    def change(handler, data):
        host.cut(HALF)(handler, b"GGUF" + bytes(len(data)))
        host.etag = '"second"'

    host.tricks = [change]
    assert fetching.run() and fetching.is_whole()
    assert fetching.watcher.begun == [(0, len(DEMO) + 4), (0, len(DEMO))]


def test_without_a_strong_etag_or_a_hash_a_cut_download_begins_anew(host, tmp_path):
    host.etag = 'W/"weak"'
    fetching = Fetching(host, tmp_path, sha256="")
    host.tricks = [host.cut(HALF)]
    assert fetching.run() and fetching.is_whole()
    assert [each.get("Range") for each in host.requests_for("f.gguf")] == [None, None]


def test_parts_of_two_files_under_one_etag_are_noticed_by_the_hash_and_it_is_fetched_once_more(host, tmp_path):
    host.tricks = [lambda handler, data: host.cut(HALF)(handler, b"GGUF" + bytes(len(data) - 4))]
    fetching = Fetching(host, tmp_path)
    assert fetching.run() and fetching.is_whole()
    assert "do not fit together" in fetching.watcher.notes[-1]


def test_a_wrong_hash_leaves_nothing(host, tmp_path):
    fetching = Fetching(host, tmp_path, sha256="0" * 64)
    assert "SHA-256 is %s, not 000" % SHA256 in fetching.fails() and fetching.left() == []


def test_a_file_cut_short_by_a_server_that_does_not_know_better_is_not_named(host, tmp_path):
    fetching = Fetching(host, tmp_path, size=None, sha256="", data=DEMO[:HALF])
    assert "cut short" in fetching.fails() and fetching.left() == []


def test_a_chunked_body_that_ends_in_the_middle_is_a_cut_one(host, tmp_path):
    fetching = Fetching(host, tmp_path, size=None, sha256="")

    def chunked(handler, data):
        handler.send_response(200)
        handler.send_header("ETag", host.etag)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n" % len(data) + data[:HALF])
        handler.close_connection = True

    host.tricks = [chunked]
    assert fetching.run() and fetching.is_whole()


Lie = collections.namedtuple("Lie", "trick said")
LIES = {
    "another length than the repository": Lie(
        lambda handler, data: say(handler, 200, data, length=len(data) + 1), "its repository says %d" % len(DEMO)
    ),
    "more than its length": Lie(
        lambda handler, data: (
            handler.send_response(200), handler.end_headers(), handler.wfile.write(data + b"more"),
            setattr(handler, "close_connection", True),
        ),
        "sends more than",
    ),  # fmt: skip
    "a page": Lie(lambda handler, data: say(handler, 200, b"<!DOCTYPE html>" * 10, length=len(data)), "no GGUF file"),
    "a coding": Lie(lambda handler, data: say(handler, 200, data, Content_Encoding="gzip"), "coding"),
    "a part that nobody asked for": Lie(
        lambda handler, data: say(
            handler, 206, data[5:], Content_Range="bytes 5-%d/%d" % (len(data) - 1, len(data))
        ),
        "another part",
    ),
    "a part that says nothing of itself": Lie(lambda handler, data: say(handler, 206, data), "answered 206"),
    "no content": Lie(status(204), "answered 204"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LIES))
def test_a_server_that_lies_is_refused(host, tmp_path, name):
    fetching = Fetching(host, tmp_path)
    host.tricks = [LIES[name].trick] * 2
    assert LIES[name].said in fetching.fails()


def test_a_rest_that_begins_elsewhere_is_refused(host, tmp_path):
    fetching = Fetching(host, tmp_path)
    host.tricks = [
        host.cut(HALF),
        lambda handler, data: say(handler, 206, data[9:], Content_Range="bytes 9-%d/%d" % (len(data) - 1, len(data))),
    ]
    assert "another part" in fetching.fails()


def test_a_server_that_has_no_such_rest_sends_the_whole(host, tmp_path):
    fetching = Fetching(host, tmp_path)
    host.tricks = [host.cut(HALF), status(416)]
    assert fetching.run() and fetching.is_whole()


def test_a_server_that_only_ever_sends_a_little_is_given_up(host, tmp_path):
    host.etag = ""
    fetching = Fetching(host, tmp_path, sha256="")
    host.tricks = [host.cut(100)] * 20
    assert "cut after 100 bytes" in fetching.fails()
    assert len(host.requests_for("f.gguf")) < 10


@pytest.mark.parametrize(
    "trick, said",
    [
        (status(401), "set HF_TOKEN"),
        (status(403), "accept the terms"),
        (status(404), "no such file"),
        (status(418), "418"),
    ],
)
def test_refusals_say_what_to_do_and_are_not_tried_again(host, tmp_path, trick, said):
    fetching = Fetching(host, tmp_path)
    host.tricks = [trick] * 3
    assert said in fetching.fails() and fetching.slept == [] and fetching.left() == []


def test_a_server_that_asks_to_wait_is_obeyed(host, tmp_path):
    fetching = Fetching(host, tmp_path)
    host.tricks = [status(429, Retry_After="7"), status(503)]
    assert fetching.run() and fetching.is_whole() and fetching.slept == [7, 2]


def test_a_server_that_is_not_there_is_tried_a_few_times(host, tmp_path):
    fetching = Fetching(host, tmp_path)
    host.close()
    assert "no connection to 127.0.0.1" in fetching.fails() and fetching.slept == [1, 2, 4, 8, 16]


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_fetched(host, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, 65 << 20))
    fetching = Fetching(host, tmp_path)
    assert "the disk is too small" in fetching.fails() and fetching.left() == []


def test_a_disk_that_fills_up_keeps_what_is_there(host, tmp_path, monkeypatch):
    fetching = Fetching(host, tmp_path)
    host.tricks = [host.cut(HALF)]
    add = fetching.download._part.add

    def add_half(piece):
        if fetching.download._part.at >= HALF:
            raise OSError(28, "No space left on device")
        add(piece)

    monkeypatch.setattr(fetching.download._part, "add", add_half)
    assert "are kept: make room" in fetching.fails()
    assert (tmp_path / "f.gguf.part").stat().st_size == HALF


def test_a_file_that_is_there_is_checked_and_left(host, tmp_path):
    fetching = Fetching(host, tmp_path)
    (tmp_path / "f.gguf").write_bytes(DEMO)
    assert fetching.run() is False and host.seen == []
    for data in (DEMO[:-1] + b"x", DEMO[:-1]):
        (tmp_path / "f.gguf").write_bytes(data)
        with pytest.raises(BadDownload, match="move .* away"):
            fetching.run()
        assert (tmp_path / "f.gguf").read_bytes() == data


def test_two_pulls_of_one_file_do_not_mix(host, tmp_path):
    with open(str(tmp_path / "f.gguf.part"), "ab") as part:
        part.write(b"GGUF")
        part.flush()
        fcntl.flock(part, fcntl.LOCK_EX)
        assert "another pull" in Fetching(host, tmp_path).fails()
        assert (tmp_path / "f.gguf.part").read_bytes() == b"GGUF"


# --------------------------------------------------------------------------- the web: tokens, redirects, proxies


def redirect(to, number=302):
    return status(number, Location=to)


def test_the_token_goes_to_its_own_host_only(host, other_host, tmp_path):
    web = Web(host.url, "secret")
    other_host.files["/f"] = host.files["/f"] = b"x"
    host.tricks = [redirect("/f"), redirect(other_host.url + "/f")]
    with web.open(host.url + "/f"):
        pass
    assert [each.get("Authorization") for each in host.requests_for("/f")] == ["Bearer secret"] * 2
    assert other_host.requests_for("/f")[0].get("Authorization") is None
    with web.open(other_host.url + "/f"):
        pass
    assert other_host.requests_for("/f")[1].get("Authorization") is None


def test_a_token_does_not_come_back_from_another_host(host, other_host):
    host.files["/f"] = other_host.files["/f"] = b"x"
    host.tricks, other_host.tricks = [redirect(other_host.url + "/f")], [redirect(host.url + "/f")]
    with Web(host.url, "secret").open(host.url + "/f"):
        pass
    assert other_host.requests_for("/f")[0].get("Authorization") is None


@pytest.mark.parametrize("number", [301, 302, 303, 307, 308])
def test_redirects_are_followed_with_the_range(host, other_host, tmp_path, number):
    other_host.files["/g.gguf"] = DEMO
    fetching = Fetching(host, tmp_path)
    host.tricks = [redirect(other_host.url + "/g.gguf", number)] * 2
    other_host.tricks = [other_host.cut(HALF)]
    assert fetching.run() and fetching.is_whole()
    assert other_host.requests_for("/g")[1]["Range"] == "bytes=%d-" % HALF


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "//", "http://[", "data:text/plain,GGUF"])
def test_redirects_to_anything_else_are_not_followed(host, tmp_path, to):
    fetching = Fetching(host, tmp_path)
    host.tricks = [redirect(to)] * 9
    assert fetching.fails() and fetching.left() == []


def test_redirects_in_a_circle_end(host, tmp_path):
    fetching = Fetching(host, tmp_path)
    host.tricks = [redirect("/f.gguf")] * 50
    assert "302" in fetching.fails()


def test_https_never_leads_to_http():
    redirects = web._Redirects(("", "", 0), "")
    request = web.urllib.request.Request("https://a/b")
    with pytest.raises(WebError, match="from https to http"):
        redirects.redirect_request(request, None, 302, "", {}, "http://a/b")


def test_what_a_server_says_reaches_the_terminal_without_its_control_characters(host):
    host.files["/f"] = b""
    host.tricks = [status(451, X_Error_Message="no\x1b]0;owned\x07 way")]
    with pytest.raises(WebError, match=r"answered 451 \(no\]0;owned way\)"):
        Web().open(host.url + "/f")


def test_a_proxy_of_the_environment_is_used(host, other_host, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", other_host.url)
    other_host.files["http://models.invalid/f.gguf"] = DEMO
    download = Download(Web(), RemoteFile("f.gguf", "http://models.invalid/f.gguf"), str(tmp_path), Notes())
    assert download.run() and (tmp_path / "f.gguf").read_bytes() == DEMO
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Fetching(host, tmp_path, sha256="").download.left == 0


# ------------------------------------------------------------------------------------------------ the command


def run(start, tmp_path, *arguments, **environment):
    program = start("comeapi.py", "pull", *arguments, COMEAPI_MODELS=str(tmp_path / "models"), **environment)
    return program.end(), program


def test_a_repository_and_a_quantization_are_all_it_takes(host, start, tmp_path):
    host.add("o/m-GGUF", **{"m-Q4_K_M__gguf": DEMO, "m-Q8_0__gguf": b"GGUF"})
    code, program = run(start, tmp_path, "o/m-GGUF:Q4_K_M", HF_ENDPOINT=host.url, HF_TOKEN="secret")
    assert code == 0, program.errors
    assert os.listdir(str(tmp_path / "models")) == ["m-Q4_K_M.gguf"]
    assert "✅ m-Q4_K_M.gguf is here (llama" in program.lines[-2]
    assert "python comeapi.py --models %s --model m-Q4_K_M.gguf" % (tmp_path / "models") in program.lines[-1]
    assert not any("\x1b" in line or "\r" in line for line in program.lines)
    assert all(headers["Authorization"] == "Bearer secret" for _, headers in host.seen) and len(host.seen) == 2


def test_without_a_quantization_it_says_what_there_is_and_what_it_takes(host, start, tmp_path):
    host.add("o/m", **{"m-Q4_0__gguf": DEMO, "m-Q8_0__gguf": b"GGUF" * 9})
    code, program = run(start, tmp_path, "o/m", HF_ENDPOINT=host.url)
    text = "\n".join(program.lines)
    assert code == 0 and "→ Q4_0" in text and "  Q8_0" in text and "36 bytes" in text
    assert "Taking Q4_0. Another one: python comeapi.py pull o/m:NAME" in text
    code, program = run(start, tmp_path, "o/m", "--list", HF_ENDPOINT=host.url)
    assert code == 0 and len(program.lines) == 2


def test_a_split_model_comes_whole(host, start, tmp_path):
    host.add("o/m", **{"m-Q8_0-%05d-of-00002__gguf" % number: DEMO for number in (1, 2)})
    code, program = run(start, tmp_path, "o/m:Q8_0", HF_ENDPOINT=host.url)
    assert code == 0 and len(os.listdir(str(tmp_path / "models"))) == 2
    assert any("2 of 2" in line for line in program.lines)


def test_the_later_parts_of_a_split_model_need_no_header_of_their_own(host, start, tmp_path):
    later = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q8sIH", 8, b"split.no", 2, 1)
    host.add("o/m", **{"m-Q8_0-00001-of-00002__gguf": DEMO, "m-Q8_0-00002-of-00002__gguf": later})
    assert run(start, tmp_path, "o/m:Q8_0", HF_ENDPOINT=host.url)[0] == 0


def test_what_fails_is_one_clear_line(host, start, tmp_path):
    code, program = run(start, tmp_path, "o/none", HF_ENDPOINT=host.url)
    assert code == 1 and len(program.errors) == 1 and "there is no repository" in program.errors[0]


def test_a_terminal_shows_how_far_it_is_on_one_line_and_then_takes_that_away(host, tmp_path):
    host.files["/m.gguf"] = DEMO
    host.tricks = [host.pause(HALF)]
    terminal = Terminal("comeapi.py", "pull", host.url + "/m.gguf", COMEAPI_MODELS=str(tmp_path / "models"))
    try:
        terminal.wait_for("⬇  m.gguf ")
        terminal.wait_for(" of 4.6 MB, ")
        host.release.set()
        assert terminal.end() == 0
    finally:
        terminal.close()
    shown = screen(terminal.text)
    assert shown[0].startswith("✅ m.gguf is here") and not any("⬇" in line for line in shown)


def test_a_pull_that_is_ended_by_ctrl_c_goes_on_the_next_time(host, start, tmp_path):
    host.files["/m.gguf"] = DEMO
    host.tricks = [host.stall(HALF)]
    program = start("comeapi.py", "pull", host.url + "/m.gguf", COMEAPI_MODELS=str(tmp_path / "models"))
    part = tmp_path / "models" / "m.gguf.part"
    wait_until(lambda: part.exists() and part.stat().st_size == HALF)
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 130 and "Repeat the command to go on" in program.lines[-1]
    code, program = run(start, tmp_path, host.url + "/m.gguf")
    assert code == 0 and (tmp_path / "models" / "m.gguf").read_bytes() == DEMO
    assert host.requests_for("m.gguf")[-1]["Range"] == "bytes=%d-" % HALF


def test_the_command_of_the_readme_is_the_one_that_exists():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as readme:
        assert "comeapi.py pull Qwen/Qwen3-4B-GGUF:Q4_K_M" in readme.read()
    assert pull.parse("Qwen/Qwen3-4B-GGUF:Q4_K_M") == Repository("Qwen/Qwen3-4B-GGUF", "Q4_K_M")
