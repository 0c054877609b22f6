"""A backend as a process of its own: its API, bad input, and how it begins and ends."""

import json
import os
import re
import shutil
import signal
import socket
import threading

import pytest
from conftest import LASTING_OPTIONS, MODELS, RAMBLE, ROOT, Program, Streaming, call, in_parallel, wait_until

STORY = {"model_name": "demo.gguf", "prompt": "Once upon a time in a magical forest,"}


def generate(backend, **body):
    return call(backend.url + "/generate", dict(STORY, **body))


def test_a_prompt_gets_an_answer(backend):
    answer = generate(backend, max_tokens=30, temperature=0)
    assert answer.status == 200
    assert answer.json["response"] and answer.json["model"] == "demo.gguf"
    usage = answer.json["usage"]
    assert usage["completion_tokens"] <= 30 and usage["total_tokens"] == sum(list(usage.values())[:2])


def test_the_defaults_are_the_contracts(backend):
    assert generate(backend, max_tokens=None, stop=None, seed=None).json["usage"]["completion_tokens"] <= 100


@pytest.mark.parametrize("prompt", ["Hello, how are you?", "こんにちは、調子はどうですか？"])
def test_small_talk_is_answered_in_its_language_and_ends_by_itself(backend, prompt):
    answer = generate(backend, prompt=prompt, temperature=0, max_tokens=200).json
    assert answer["finish_reason"] == "stop"
    japanese = bool(re.search("[ぁ-ん]", answer["response"]))
    assert answer["response"].strip() and japanese == bool(re.search("[ぁ-ん]", prompt))


def test_small_talk_works_by_chat_template_too(backend):
    prompt = "<|im_start|>user\nHello, how are you?<|im_end|>\n<|im_start|>assistant\n"
    answer = generate(backend, prompt=prompt, temperature=0, max_tokens=200).json
    assert answer["finish_reason"] == "stop" and "<|" not in answer["response"]


def test_a_story_is_told_in_whole_sentences_and_ends(backend):
    answer = generate(backend, temperature=0, max_tokens=400).json
    assert answer["finish_reason"] == "stop"
    assert re.search(r"[.!?\"]$", answer["response"].strip())


def test_a_stream_gives_the_same_answer_piece_by_piece(backend):
    whole = generate(backend, max_tokens=40, temperature=0, cache_prompt=False).json
    streamed = generate(backend, max_tokens=40, temperature=0, cache_prompt=False, stream=True)
    assert streamed.headers["Content-Type"] == "text/event-stream"
    assert "".join(event["response"] for event in streamed.events) == whole["response"]
    assert [event["done"] for event in streamed.events] == [False] * (len(streamed.events) - 1) + [True]
    assert sum(len(event["tokens"]) for event in streamed.events) == whole["usage"]["completion_tokens"]
    assert streamed.events[-1]["usage"] == whole["usage"]


def test_a_stream_tells_the_probabilities_of_every_token_those_of_a_stop_string_too(backend):
    whole = generate(backend, max_tokens=40, temperature=0).json["response"]
    events = generate(backend, max_tokens=40, temperature=0, n_probs=1, stop=whole[20:32], stream=True).events
    told = [each["id"] for event in events for each in event.get("completion_probabilities", [])]
    assert events[-1]["tokens"] and told == [token for event in events for token in event["tokens"]]


def test_five_clients_at_once_get_five_right_answers_from_one_batch(backend):
    prompts = [STORY["prompt"], "Hello, how are you?", "What color is the sky?", "むかしむかし、", "こんにちは"]
    alone = [generate(backend, prompt=prompt, temperature=0, max_tokens=60).json["response"] for prompt in prompts]
    together = in_parallel(lambda prompt: generate(backend, prompt=prompt, temperature=0, max_tokens=60), prompts)
    assert [answer.json["response"] for answer in together] == alone
    assert call(backend.url + "/status").json["largest_batch"] > 1


@pytest.mark.parametrize(
    "body, param",
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"model_name": None}, "model_name"),
        ({"model_name": 7}, "model_name"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1e400}, None),  # Infinity is no JSON
        ({"top_k": -5}, "top_k"),
        ({"top_p": 1.01}, "top_p"),
        ({"seed": -2}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"prompt": "word " * 5000}, "prompt"),
    ],
)
def test_a_wrong_field_gets_400_that_names_it(backend, body, param):
    answer = generate(backend, **body)
    assert answer.status == 400
    error = answer.json["error"]
    assert error["type"] in ("invalid_request_error", "exceed_context_size_error")
    assert error["param"] == param and error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100000])
def test_what_is_no_json_object_gets_400(backend, body):
    answer = call(backend.url + "/generate", body, method="POST")
    assert answer.status == 400 and answer.json["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("name", ["missing.gguf", "gpt-4o", "../models/demo.gguf", "/etc/passwd", "\0"])
def test_where_there_is_one_model_any_name_means_it(backend, name):
    answer = generate(backend, model_name=name, max_tokens=1)
    assert answer.status == 200 and answer.json["model"] == "demo.gguf"
    assert call(backend.url + "/v1/models/nobody").status == 404


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A backend with two models in its folder, and an alias for one of them."""
    folder = tmp_path_factory.mktemp("pair")
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(os.path.join(ROOT, "models", "demo.gguf"), folder / name)
    program = Program("backend.py", "--child", "--models", folder, "--port", 0, "--alias", "small=b.gguf,tiny")
    try:
        program.url = program.wait_for_event("listening")["url"]
        program.wait_for_event("ready")
        yield program
    finally:
        program.close()


@pytest.mark.parametrize("name", ["missing.gguf", "../models/a.gguf", "/etc/passwd", "..\\a.gguf", "\0"])
def test_an_unknown_model_gets_404_that_lists_what_there_is(pair, name):
    answer = generate(pair, model_name=name)
    assert answer.status == 404 and "a.gguf, b.gguf" in answer.json["error"]["message"]


def test_further_names_mean_their_models(pair):
    named = [generate(pair, model_name=name, max_tokens=1).json["model"] for name in ("small", "tiny", "a")]
    assert named == ["b.gguf", "a.gguf", "a.gguf"]
    listed = {each["id"]: each for each in call(pair.url + "/models").json["data"]}
    assert set(listed) == {"tiny", "b.gguf"} and listed["tiny"]["aliases"] == ["tiny"]
    assert call(pair.url + "/v1/models/small").json["id"] == "b.gguf"


def test_a_stream_that_can_not_begin_gets_its_own_status(backend):
    assert generate(backend, stream=True, prompt="word " * 5000).status == 400


def test_bad_requests_do_not_disturb_the_others_in_the_batch(backend):
    good = dict(STORY, temperature=0, max_tokens=60)
    expected = call(backend.url + "/generate", good).json["response"]
    bad = [dict(good, model_name=7), dict(good, prompt="x " * 9000), dict(good, top_p=7), {"prompt": 1}]
    answers = in_parallel(lambda body: call(backend.url + "/generate", body), [good, *bad, good, *bad, good])
    assert [answer.status for answer in answers if answer.status != 200] == [400, 400, 400, 400] * 2
    assert {answer.json["response"] for answer in answers if answer.status == 200} == {expected}


def test_the_models_are_listed(backend):
    models = call(backend.url + "/models").json["models"]
    assert [(each["name"], each["loaded"]) for each in models] == [("demo.gguf", True)]
    assert 0 < models[0]["size_mb"] <= 5


def test_health_answers_at_once_while_the_engine_works(backend):
    stop = threading.Event()

    def work(_):
        while not stop.is_set():
            generate(backend, **RAMBLE)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    try:
        wait_until(lambda: call(backend.url + "/health").json["busy_slots"] == 4)
        health = call(backend.url + "/health", timeout=5)
        assert health.status == 200 and health.json["heartbeat_age"] < 5
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def send_and_leave(backend, body):
    """Send a request on a raw connection and return the open socket."""
    data = json.dumps(body).encode()
    host, port = backend.url.split("//")[1].split(":")
    sock = socket.create_connection((host, int(port)))
    sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    return sock


@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_that_hangs_up_frees_its_slot(start, tmp_path, streaming):
    backend = start("backend.py", "--child", "--port", 0, "--threads", 1, "--slots", 1, *LASTING_OPTIONS)
    backend.url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    # Answers one after another for minutes, if nobody cancels them.
    body = dict(STORY, **dict(RAMBLE, stream=streaming, max_tokens=8000))
    sockets = [send_and_leave(backend, body) for _ in range(20)]
    wait_until(lambda: call(backend.url + "/health").json["queued"] == 19)
    for sock in sockets:
        sock.close()

    def nothing_left():
        health = call(backend.url + "/health").json
        return health["busy_slots"] == health["queued"] == 0

    wait_until(nothing_left)
    assert "comeapi_backend_cancelled_total 20" in call(backend.url + "/metrics").body.decode().splitlines()


def test_a_client_that_leaves_is_noticed_while_its_model_never_pauses(start):
    backend = start("backend.py", "--child", "--port", 0, "--threads", 1, *LASTING_OPTIONS)
    backend.url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    sock = send_and_leave(backend, dict(STORY, max_tokens=8000, ignore_eos=True))
    wait_until(lambda: call(backend.url + "/health").json["busy_slots"] == 1)
    sock.close()
    wait_until(lambda: call(backend.url + "/health").json["busy_slots"] == 0)
    assert call(backend.url + "/status").json["generated_tokens"] < 8000


def test_metrics_are_prometheus_text(backend):
    generate(backend, max_tokens=3)
    metrics = call(backend.url + "/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = metrics.body.decode().splitlines()
    assert "comeapi_backend_slots 4" in lines
    line_of_text = r'# (HELP|TYPE) [\w:]+ .+|[\w:]+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? \S+'
    assert all(re.fullmatch(line_of_text, line) for line in lines)


def test_metrics_have_llama_servers_names_too(start):
    backend = start("backend.py", "--child", "--port", 0, "--threads", 1)
    backend.url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    timings = [generate(backend, max_tokens=5, temperature=0).json["timings"] for _ in range(2)]
    page = call(backend.url + "/metrics")
    told = dict(line.split() for line in page.body.decode().splitlines() if line.startswith("llamacpp:"))
    told = {name: float(value) for name, value in told.items()}
    sums = {name: sum(each[name] for each in timings) for name in ("prompt_n", "cache_n", "predicted_n")}
    assert told["llamacpp:prompt_tokens_total"] == sums["prompt_n"]
    assert told["llamacpp:prompt_tokens_cached_total"] == sums["cache_n"] > 0
    assert told["llamacpp:tokens_predicted_total"] == sums["predicted_n"]
    assert told["llamacpp:predicted_tokens_seconds"] > 0 and told["llamacpp:n_busy_slots_per_decode"] == 1
    assert told["llamacpp:requests_processing"] == 0 and told["llamacpp:n_tokens_max"] > 5
    assert int(page.headers["Process-Start-Time-Unix"]) > 1e9
    rates = [line for line in call(backend.url + "/metrics").body.decode().splitlines() if "_tokens_seconds 0" in line]
    assert len(rates) == 2  # nothing has been done since the last look


# ---- how it begins


def refused(start, *arguments, **environment):
    """Start a backend that can't work; returns its one line on stderr."""
    program = start("backend.py", *arguments, **environment)
    assert program.end() > 0  # not 0, and no signal
    assert len(program.errors) == 1, program.errors
    return program.errors[0]


def test_a_port_in_use_is_one_clear_line(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert "can't listen on 127.0.0.1 port %d: Address already in use" % port in refused(start, "--port", port)


def test_a_missing_or_empty_models_folder_is_one_clear_line(start, tmp_path):
    assert "does not exist" in refused(start, "--models", tmp_path / "missing")
    assert "holds no .gguf file" in refused(start, "--models", tmp_path)


def test_a_model_that_is_not_there_is_one_clear_line(start):
    assert "There is no model 'qwen'" in refused(start, "--model", "qwen")


def test_a_wrong_option_is_one_clear_line(start):
    assert "--slots" in refused(start, "--slots", "many")
    assert "COMEAPI_SLOTS" in refused(start, COMEAPI_SLOTS="many")


def test_a_broken_model_beside_a_good_one_is_refused_when_asked_for(start, tmp_path):
    shutil.copy(os.path.join(ROOT, "models", "demo.gguf"), tmp_path / "demo.gguf")
    with open(tmp_path / "demo.gguf", "rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read()[:200000])
    backend = start("backend.py", "--child", "--models", tmp_path, "--port", 0, "--threads", 1)
    backend.url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    answer = generate(backend, model_name="cut.gguf")
    assert answer.status == 500 and "cut short" in answer.json["error"]["message"]
    assert generate(backend, max_tokens=3).status == 200
    listed = {each["name"]: each.get("problem") for each in call(backend.url + "/models").json["models"]}
    assert listed["demo.gguf"] is None and "cut short" in listed["cut.gguf"]


def test_llama_servers_command_line_starts_and_does_what_it_says(start):
    line = "-c 1024 -np 2 --port 0 -ngl 99 --jinja -fa on --temp 0.7 --seed 42 --alias gpt-4o,a --no-slots -t 1 --no-ui"
    backend = start("backend.py", "-m", os.path.join(MODELS, "demo.gguf"), *line.split())
    backend.url = backend.wait_for_line("🟢").split()[1]
    body = {"prompt": "Once upon a time", "n_predict": 3, "model": "whatever"}
    answer = call(backend.url + "/completion", body).json
    told = answer["generation_settings"]
    assert (told["temperature"], told["seed"], answer["model"]) == (0.7, 42, "a")
    assert call(backend.url + "/completion", body).json["content"] == answer["content"]
    assert call(backend.url + "/props").json["total_slots"] == 2 and call(backend.url + "/slots").status == 501
    assert call(backend.url + "/health").json["slots"] == 2
    said = "\n".join(backend.errors)
    assert "--jinja (chat templates are always Jinja); --no-ui (" in said
    assert "--ctx-size 1024 is each slot's: 2 slots hold 2048 tokens in sum." in said and "--share-ctx" in said


def test_the_positional_form_works(start):
    backend = start("backend.py", MODELS, "127.0.0.1", 0, "--threads", 1)
    line = backend.wait_for_line("🟢")
    pattern = r"🟢 http://127\.0\.0\.1:\d+ \(PID %d\) demo\.gguf loaded in \d+\.\d s, \d+ MB in memory" % backend.pid
    assert re.fullmatch(pattern, line)


def test_a_lazy_backend_loads_with_the_first_request(start):
    backend = start("backend.py", "--child", "--lazy", "--port", 0, "--threads", 1)
    backend.url = backend.wait_for_event("listening")["url"]
    assert wait_until(lambda: call(backend.url + "/health")).json["model"] is None
    assert generate(backend, max_tokens=3).status == 200
    assert call(backend.url + "/health").json["model"] == "demo.gguf"


def test_keys_are_asked_for_everywhere_but_at_health(start):
    backend = start("backend.py", "--child", "--port", 0, "--threads", 1, COMEAPI_API_KEY="one,two")
    url = backend.wait_for_event("listening")["url"]
    assert call(url + "/health").status in (200, 503)
    assert call(url + "/models").status == call(url + "/nowhere").status == 401
    assert call(url + "/models", headers={"Authorization": "Bearer two"}).status == 200


def test_a_chat_template_of_ones_own_takes_the_models_place(start, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("Q: {{ messages[-1].content }} A:", encoding="utf-8")
    backend = start("backend.py", "--child", "--port", 0, "--threads", 1, "--chat-template", path)
    url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    body = {"messages": [{"role": "user", "content": "Who?"}]}
    assert call(url + "/apply-template", body).json["prompt"] == "Q: Who? A:"
    assert start("backend.py", "--chat-template", tmp_path / "none").end() == 2


def test_a_backend_makes_itself_known_to_a_balancer_and_takes_its_leave(start):
    balancer = start("balancer.py", "--child", "--port", 0, "--backends", 0, "--admin-key", "boss")
    url = balancer.wait_for_event("listening")["url"]
    options = ["--register", url, "--admin-key", "boss"]
    backend = start("backend.py", "--child", "--port", 0, "--threads", 1, *options)
    own = backend.wait_for_event("listening")["url"]
    wait_until(lambda: call(url + "/status").json["healthy_backends"] == 1)
    assert call(url + "/status").json["backends"][0]["url"] == own
    assert call(url + "/generate", {"model_name": "demo", "prompt": "Once", "max_tokens": 2}).status == 200
    backend.process.stdin.close()
    assert backend.end() == 0
    wait_until(lambda: call(url + "/status").json["total_backends"] == 0)


# ---- how it ends


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "end of input"])
def test_running_requests_finish_before_it_stops(start, how):
    backend = start("backend.py", "--child", "--port", 0, "--threads", 1)
    backend.url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    running = Streaming(backend.url + "/generate", dict(STORY, **dict(RAMBLE, max_tokens=600)))
    if how == "end of input":
        backend.process.stdin.close()
    else:
        backend.process.send_signal(getattr(signal, how))
    assert backend.end() == 0
    last = running.end().events[-1]
    assert last["done"] and last["usage"]["completion_tokens"] == 600


DOUBLING = "root ::= r0\n" + "\n".join("r%d ::= r%d r%d" % (n, n + 1, n + 1) for n in range(20)) + '\nr20 ::= "a"?'


@pytest.mark.parametrize(
    "body, status",
    [
        ({"grammar": 'root ::= "a"', "ignore_eos": True}, 200),
        ({"grammar": "root ::= [a-z]", "logit_bias": [[token, False] for token in range(1536, 2560)]}, 200),
        ({"grammar": 'root ::= "a"', "logit_bias": [[2059, False], [102, False]]}, 400),
        ({"logit_bias": {"300": 1e30, "301": 1e30}, "temperature": 100}, 200),
        ({"grammar": "root ::= [z-a]+"}, 400),
        ({"grammar": "root ::= <[300]> <[99999999]>"}, 400),
        ({"grammar": 'root ::= [a-z] !<[300]>+ [a-z] !<[301]>', "temperature": 2}, 200),
        ({"repeat_last_n": 2147483647, "repeat_penalty": 1.1}, 200),
        ({"dry_multiplier": 1, "dry_penalty_last_n": 2147483647, "dry_allowed_length": 2147483647}, 200),
        ({"top_k": 2147483647, "min_keep": 2147483647, "typical_p": 0.5}, 200),
        ({"grammar": 'root ::= "a"{5,2}'}, 400),
        ({"grammar": 'root ::= "a"{0,100000} "b"'}, 200),
        ({"grammar": "root ::= " + "(" * 100000 + '"a"' + ")" * 100000}, 400),
        ({"grammar": "root ::= r0\n" + "\n".join("r%d ::= r%d" % (n, n + 1) for n in range(9999))}, 400),
        ({"grammar": DOUBLING}, 400),
        ({"grammar": "root ::= " + " | ".join('"%d"' % number for number in range(100000))}, 400),
        ({"grammar": "root ::= e root | " + '"y"\ne ::= f f\nf ::= "z"?'}, 400),
        ({"grammar": 'root ::= ([a-z]+ " "?)+ "!"'}, 200),
        ({"grammar": 'root ::= [ -~] root "b" | [ -~] root "c" | "\n"'}, 200),
    ],
)
def test_a_request_that_would_end_or_stop_llama_cpp_gets_its_answer_and_so_does_the_next(backend, body, status):
    answer = generate(backend, max_tokens=20, **body)
    assert answer.status == status, answer.body[:300]
    assert generate(backend, max_tokens=3).json["usage"]["completion_tokens"] == 3
    assert backend.process.poll() is None
