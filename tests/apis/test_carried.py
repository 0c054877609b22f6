"""An answer that a backend tells in frames can be carried on by another process, from any frame, in every dialect."""

import json
import re

import pytest
from conftest import Program, call, in_parallel

from core.carriage import CARRY, RESUME, BadFrame, Frames, Notes, frame, parted, proof

SECRET = "the balancer's own"
# So that what is evaluated in one batch differs as little as can be from what was evaluated token by token.
EXACT = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")
HELLO = [{"role": "user", "content": "Tell me a story"}]
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"enum": ["a", "b"]}}}},
}
GREEDY = {"temperature": 0}
BODIES = {
    "generate": ("/generate", {"model_name": "demo.gguf", "prompt": "Once upon a time", "max_tokens": 12, "seed": 3}),
    "two completions": ("/v1/completions", {"prompt": "Once upon", "n": 2, "max_tokens": 8, "seed": 4, "logprobs": 2}),
    "an echo with a stop string": (
        "/v1/completions", dict(GREEDY, prompt="Once upon a time", echo=True, max_tokens=20, stop=[" was"])
    ),
    "a chat": ("/v1/chat/completions", dict(messages=HELLO, max_tokens=12, stream_options={"include_usage": True})),
    "a forced call": (
        "/v1/chat/completions",
        dict(GREEDY, messages=HELLO, tools=[TOOL], tool_choice="required", max_tokens=60),
    ),
    "a schema": (
        "/v1/chat/completions",
        dict(messages=HELLO, seed=5, max_tokens=40, n=2, response_format={
            "type": "json_schema", "json_schema": {"schema": {"type": "array", "items": {"type": "boolean"}}}
        }),
    ),
    "a response": ("/v1/responses", dict(GREEDY, input="Tell me a story", max_output_tokens=12)),
    "a response's call": (
        "/v1/responses",
        dict(GREEDY, input="Tell me", tools=[dict(TOOL["function"], type="function")], tool_choice="required",
             max_output_tokens=30),
    ),
    "a message": ("/v1/messages", {"messages": HELLO, "max_tokens": 12}),
    "Ollama's chat": (
        "/api/chat", {"model": "demo.gguf", "messages": HELLO, "options": {"num_predict": 12, "seed": 1}}
    ),
    "llama.cpp's completion": ("/completion", {"prompt": ["Once", "むかし"], "n_predict": 8, "n_probs": 1, "seed": 6}),
}  # fmt: skip


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    """Three processes with the same model and the same secret."""
    kept = tmp_path_factory.mktemp("kept")
    options = ("--child", "--port", 0, "--threads", 1, "--carry-secret", SECRET, "--responses-dir", kept, *EXACT)
    programs = [Program("backend.py", *options) for _ in range(3)]
    try:
        for program in programs:
            program.url = program.wait_for_event("listening")["url"]
            program.wait_for_event("ready")
        yield programs
    finally:
        for program in programs:
            program.close()


def carried(backend, path, body, notes=None, secret=SECRET):
    """Ask for an answer in frames; returns them as (note, bytes), or the answer where there are none."""
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json", "X-Request-Id": "r1"}
    if notes:
        data, more = notes.before(data)
        headers.update(more)
    headers[CARRY] = proof(secret, path, "r1", data)
    answer = call(backend.url + path, data, headers)
    if CARRY not in answer.headers:
        return answer
    return list(Frames().feed(answer.body))


def same(data):
    """Return an answer without what may differ: times, how much of the prompt was in the cache, the digits of
    probabilities, and which of two answers comes first."""
    text = re.sub(r'"(timings)": \{[^}]*\}', "", data.decode())
    text = re.sub(r'"(created_at|\w*cached_tokens|cache_\w+|\w+_duration|tokens_cached|input\w+)": [^,}]*', "", text)
    text = re.sub(r"-?\d+\.\d+", "0.0", text)
    return sorted(text.split("\n"), key=lambda line: "".join(re.findall(r'"index": \d+', line)[:1]))


def tells_probabilities(body):
    return "logprobs" in body or "n_probs" in body


CARRIED_WHOLE = [name for name in BODIES if not tells_probabilities(BODIES[name][1])]
CASES = [(name, True) for name in BODIES] + [(name, False) for name in CARRIED_WHOLE]


@pytest.mark.parametrize("name, streams", CASES)
def test_an_answer_goes_on_from_any_frame_in_another_process(backends, name, streams):
    path, body = BODIES[name]
    body = dict(body, stream=streams)
    first, others = backends[0], backends[1:]
    frames = carried(first, path, body)
    whole = b"".join(payload for _, payload in frames)
    assert frames[-1][0]["status"] == 200 and len(frames) > 4
    cuts = range(1, len(frames), 1 if streams else 5)

    def go_on(number):
        """Let one of the others, which has one request at a time, go on from every second cut."""
        for cut in cuts[number :: len(others)]:
            notes = Notes()
            for note, _ in frames[:cut]:
                notes.take(note)
            yield cut, carried(others[number], path, body, notes)

    told = in_parallel(lambda number: list(go_on(number)), range(len(others)))
    assert sorted(cut for each in told for cut, _ in each) == list(cuts)
    for cut, rest in told[0] + told[1]:
        joined = b"".join(payload for _, payload in frames[:cut] + rest)
        assert same(joined) == same(whole), cut
        assert rest[-1][0]["status"] == 200


@pytest.mark.parametrize("name", sorted(set(BODIES) - set(CARRIED_WHOLE)))
def test_a_whole_answer_with_probabilities_is_none_that_can_be_carried_on(backends, name):
    path, body = BODIES[name]
    answer = carried(backends[0], path, dict(body, stream=False))
    assert answer.status == 200 and answer.json


def test_a_streams_end_that_repeats_probabilities_cant_be_told_by_another_backend(backends):
    body = {"input": "Hi", "max_output_tokens": 4, "top_logprobs": 1, "stream": True}
    assert carried(backends[0], "/v1/responses", body).status == 200


def test_what_frames_hold_is_what_other_clients_get(backends):
    path, body = BODIES["generate"]
    body = dict(body, stream=True)
    plain = call(backends[0].url + path, body)
    assert b"comeapi" not in plain.body and CARRY not in plain.headers
    assert same(b"".join(payload for _, payload in carried(backends[1], path, body))) == same(plain.body)


def test_without_the_secret_nobody_gets_notes_or_hands_them_in(backends):
    path, body = BODIES["generate"]
    answer = carried(backends[0], path, body, secret="guessed")
    assert answer.status == 200 and b": comeapi" not in answer.body
    answer = carried(backends[0], path, body, Notes(), secret="guessed")
    assert (answer.status, answer.json["error"]["code"]) == (403, "not_the_balancer")
    answer = call(backends[0].url + path, json.dumps(body).encode(), {RESUME: "0"})
    assert answer.status == 403


def test_a_proof_is_good_for_its_own_request_only(backends):
    path, body = BODIES["generate"]
    other = json.dumps(dict(body, prompt="Another")).encode()
    headers = {CARRY: proof(SECRET, path, "r1", other), "X-Request-Id": "r1"}
    assert CARRY not in call(backends[0].url + path, json.dumps(body).encode(), headers).headers


@pytest.mark.parametrize(
    "head, code",
    [
        ({"fingerprint": "another", "nonce": "x", "created": 1, "seeds": [1]}, "other_model"),
        ({"format": 2, "nonce": "x", "created": 1, "seeds": [1]}, "other_format"),
        ({"seeds": "x"}, "bad_notes"),
    ],
)
def test_notes_of_another_model_and_notes_that_are_none_are_refused(backends, head, code):
    path, body = BODIES["generate"]
    answer = carried(backends[0], path, body, Notes(head))
    assert answer.json["error"]["code"] == code and answer.status in (400, 409)


def test_what_a_later_version_tells_as_well_is_ignored(backends):
    path, body = BODIES["generate"]
    body = dict(body, stream=True)
    frames = carried(backends[0], path, body)
    notes = Notes()
    for note, _ in frames[:-1]:
        if "end" in note:
            note["end"]["mood"] = "good"
        notes.take(dict(note, weather="fine"))
    notes.head["colour"] = "blue"
    rest = carried(backends[1], path, body, notes)
    assert rest[-1][0]["status"] == 200


@pytest.mark.parametrize("size", ["-1", "x", "99999999", "1e3", "²", "1"])
def test_notes_of_a_wrong_size_are_refused(size):
    with pytest.raises(BadFrame):
        parted(b'{"head": {}, "tokens": {}, "ends": {}}{}', size)


def test_frames_come_in_any_pieces():
    data = frame({"i": 0, "t": [1, 2]}, b"one\n") + frame({}) + frame({"status": 200}, ": comeapi { ü".encode())
    frames, found = Frames(), []
    for at in range(len(data)):
        found += frames.feed(data[at : at + 1])
    assert [payload for _, payload in found] == [b"one\n", b"", ": comeapi { ü".encode()]


@pytest.mark.parametrize(
    "data",
    [b"data: x\n\n", b": comeapi {}\n", b": comeapi {\"n\": -1}\n", b": comeapi [1]\n", b": comeapi {\"n\": 1e9}\n",
     b": comeapi " + b"x" * (1 << 20), b": comeapi \xff\n", b": comeapi " + b"[" * 100000 + b"\n"],
)  # fmt: skip
def test_what_is_no_frame_is_noticed(data):
    with pytest.raises(BadFrame):
        list(Frames().feed(data))


@pytest.mark.parametrize("note", [{"i": -1}, {"i": 0, "t": [True]}, {"i": 0, "t": 5}, {"i": 0, "end": 1}, {"head": []}])
def test_what_is_no_note_is_noticed(note):
    with pytest.raises(BadFrame):
        Notes().take(note)


def test_notes_of_an_endless_answer_take_no_more_memory():
    notes = Notes()
    for _ in range(300):
        notes.take({"i": 0, "t": [1] * 1000})
    assert not notes.whole and len(notes.tokens[0]) <= 1 << 18
