"""LoRA adapters by request and by model name, their list, and answers that are carried on with them."""

import json

import pytest
from conftest import Program, call, wait_until
from gguf import write_adapter

from core.adapters import read_adapters
from core.apis.scales import read_scales
from core.carriage import CARRY, Frames, Notes, proof
from core.errors import APIError
from core.settings import EngineSettings

STORY = "Once upon a time in a magical forest,"
ASKED = {"prompt": STORY, "n_predict": 24, "temperature": 0}
TELL = [{"role": "user", "content": "Tell me a story about a bear."}]
SECRET = "the balancer's own"
EXACT = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(str(folder / name), seed) for seed, name in ((1, "pirate.gguf"), (2, "poet.gguf"))]


def launch(*options):
    options = ("--child", "--port", 0, "--threads", 1, "--carry-secret", SECRET, *EXACT, *options)
    program = Program("backend.py", *options)
    program.url = program.wait_for_event("listening")["url"]
    program.wait_for_event("ready")
    return program


@pytest.fixture(scope="module")
def named(adapters):
    """A backend with an adapter that has a name, and one that is applied to all that name none."""
    program = launch("--lora", "sailor=" + adapters[0], "--lora", adapters[1] + ":0.5")
    yield program
    program.close()


def say(backend, **more):
    answer = call(backend.url + "/completion", dict(ASKED, **more))
    assert answer.status == 200, answer.json
    return answer.json["content"]


def lora(*scales):
    return [{"id": number, "scale": scale} for number, scale in enumerate(scales)]


@pytest.fixture(scope="module")
def voices(named):
    """What the model says with each set of adapters."""
    sets = {"plain": (0, 0), "sailor": (1, 0), "poet": (0, 1), "half": (0, 0.5)}
    return {name: say(named, lora=lora(*scales)) for name, scales in sets.items()}


def test_each_set_has_its_own_voice(voices, backend):
    assert len(set(voices.values())) == 4
    assert say(backend) == voices["plain"]


def test_a_request_that_names_none_gets_those_without_a_name(named, voices):
    assert say(named) == voices["half"]
    assert say(named, lora=[]) == voices["plain"]


def test_an_adapter_is_chosen_by_the_models_name(named, voices):
    for name in ("demo:sailor", "demo.gguf:sailor", "Demo:Sailor"):
        assert say(named, model=name) == voices["sailor"]
    assert say(named, model="demo:poet") == voices["half"]  # with the scale that the option gives it
    body = {"model_name": "demo:sailor", "prompt": STORY, "max_tokens": 24, "temperature": 0}
    answer = call(named.url + "/generate", body).json
    assert answer["response"] == voices["sailor"] and answer["model"] == "demo.gguf:sailor"


@pytest.mark.parametrize("path, body", [
    ("/v1/completions", {"prompt": STORY}), ("/v1/chat/completions", {"messages": TELL}),
    ("/v1/messages", {"messages": TELL}),
    ("/api/generate", {"prompt": STORY, "raw": True, "stream": False}),
])  # fmt: skip
def test_every_api_takes_both_ways(named, path, body):
    body = dict(body, max_tokens=24, temperature=0, options={"num_predict": 24, "temperature": 0})

    def told(**more):
        answer = call(named.url + path, dict(body, **more)).json
        return json.dumps([answer.get(name) for name in ("choices", "content", "response")])

    by_field, by_name = told(model="demo", lora=lora(1, 0)), told(model="demo:sailor")
    assert by_field == by_name != told(model="demo", lora=[])


def test_the_models_with_their_adapters_are_listed(named):
    models = {each["name"]: each["loaded"] for each in call(named.url + "/models").json["models"]}
    assert models == {"demo.gguf": True, "demo.gguf:sailor": True, "demo.gguf:poet": True}
    names = [each["id"] for each in call(named.url + "/v1/models").json["data"]]
    assert sorted(names) == ["demo.gguf", "demo.gguf:poet", "demo.gguf:sailor"]
    assert call(named.url + "/v1/models/demo:sailor").json["id"] == "demo.gguf:sailor"


def test_the_list_of_adapters_can_be_read_and_changed(named, voices, adapters):
    listed = call(named.url + "/lora-adapters").json
    assert [(each["id"], each["name"], each["path"], each["scale"], each["task_name"]) for each in listed] == [
        (0, "sailor", adapters[0], 0, "task 1"), (1, "poet", adapters[1], 0.5, "task 2"),
    ]  # fmt: skip
    try:
        assert call(named.url + "/lora-adapters", lora(1)).json == {"success": True}
        assert [each["scale"] for each in call(named.url + "/lora-adapters").json] == [1, 0]
        assert say(named) == voices["sailor"] and say(named, lora=lora(0, 1)) == voices["poet"]
    finally:
        call(named.url + "/lora-adapters", lora(0, 0.5))
    assert say(named) == voices["half"]


@pytest.mark.parametrize("value, param", [
    ("x", "lora"), ({}, "lora"), ([1], "lora[0].id"), ([{"scale": 1}], "lora[0].id"), ([{"id": 2}], "lora[0].id"),
    ([{"id": -1}], "lora[0].id"), ([{"id": 0}, {"id": "0"}], "lora[1].id"), ([{"id": 0}] * 65, "lora"),
    ([{"id": 0, "scale": "x"}], "lora[0].scale"), ([{"id": 0, "scale": 1e9}], "lora[0].scale"),
])  # fmt: skip
def test_a_wrong_field_is_named(value, param):
    with pytest.raises(APIError) as refused:
        read_scales(value, 2)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_what_names_two_things_or_nothing_is_refused(named, backend):
    refused = call(named.url + "/completion", dict(ASKED, model="demo:sailor", lora=lora(1)))
    assert refused.status == 400 and refused.json["error"]["param"] == "lora"
    assert call(named.url + "/completion", dict(ASKED, model="demo:nobody")).status == 404
    assert call(backend.url + "/completion", dict(ASKED, lora=lora(1))).status == 400
    assert call(backend.url + "/lora-adapters").json == []
    assert call(backend.url + "/lora-adapters", {"id": 0}).status == 400


def test_the_balancer_knows_the_names(named, voices):
    balancer = Program("balancer.py", "--child", "--port=0", "--backend=" + named.url)
    try:
        balancer.url = balancer.wait_for_event("listening")["url"]
        wait_until(lambda: call(balancer.url + "/status").json["healthy_backends"] == 1)
        assert say(balancer, model="demo:sailor") == voices["sailor"]
        assert "demo.gguf:poet" in [each["name"] for each in call(balancer.url + "/models").json["models"]]
        assert call(balancer.url + "/completion", dict(ASKED, model="demo:nobody")).status == 404
    finally:
        balancer.close()


def carried(backend, body, notes=None):
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json", "X-Request-Id": "r1"}
    if notes:
        data, more = notes.before(data)
        headers.update(more)
    headers[CARRY] = proof(SECRET, "/completion", "r1", data)
    answer = call(backend.url + "/completion", data, headers)
    return list(Frames().feed(answer.body)) if answer.status == 200 else answer


def contents(frames):
    lines = b"".join(payload for _, payload in frames).decode().split("\n\n")
    return "".join(json.loads(line[len("data: ") :])["content"] for line in lines if line.startswith("data: {"))


def test_an_answer_is_carried_on_with_its_adapters_or_not_at_all(named, voices, adapters):
    """The other backend has the same adapters, at other places and with other scales by themselves."""
    body = dict(ASKED, stream=True, model="demo:sailor")
    frames = carried(named, body)
    notes = Notes()
    for note, _ in frames[:6]:
        notes.take(note)
    other = launch("--lora", "sailor=" + adapters[0], "--lora", adapters[1] + ":0.25")
    try:
        rest = carried(other, body, notes)
        assert contents(frames[:6] + rest) == contents(frames) == voices["sailor"]
        notes = Notes()
        for note, _ in carried(named, dict(body, model="demo"))[:6]:
            notes.take(note)
        assert carried(other, dict(body, model="demo"), notes).status == 409  # 0.5 of the poet, and 0.25
    finally:
        other.close()


def test_what_a_slot_holds_is_kept_with_its_adapters(adapters, tmp_path):
    backend = launch("--lora", "sailor=" + adapters[0], "--slots=1", "--slot-save-path=%s" % tmp_path)
    try:
        long = {"prompt": STORY * 5, "model": "demo:sailor"}
        text = say(backend, **long)
        assert call(backend.url + "/slots/0?action=save", {"filename": "x"}).status == 200
        say(backend, prompt="Something else.", n_predict=1)
        assert call(backend.url + "/slots/0?action=restore", {"filename": "x"}).status == 200
        answer = call(backend.url + "/completion", dict(ASKED, **long)).json
        assert answer["content"] == text and answer["timings"]["prompt_n"] == 1
        assert call(backend.url + "/slots/0?action=restore", {"filename": "x"}).status == 200
        assert call(backend.url + "/completion", dict(ASKED, prompt=STORY * 5)).json["timings"]["cache_n"] == 0
    finally:
        backend.close()


def test_the_option_takes_names_scales_and_several_files(tmp_path):
    one, two = tmp_path / "one.gguf", tmp_path / "t=o.gguf"
    for path in (one, two):
        path.write_bytes(b"x")

    def read(text):
        return [(each.name, each.path, each.scale, each.named) for each in read_adapters(text)]

    assert read(str(one)) == [("one", str(one), 1, False)]
    assert read("%s:0.5" % one) == [("one", str(one), 0.5, False)]
    assert read("a-b=%s:2" % one) == [("a-b", str(one), 2, True)]
    assert read(str(two)) == [("t=o", str(two), 1, False)]
    assert [each[2] for each in read("%s,%s:3" % (one, two))] == [1, 3]
    settings = EngineSettings(lora=("x=%s" % one, "%s:0.5" % two))
    assert settings.lora_scales == (0, 0.5)
    assert EngineSettings(lora=settings.lora, lora_init_without_apply=True).lora_scales == (0, 0)
