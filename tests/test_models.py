"""The models folder, and GGUF files that are whole, cut short, or something else."""

import os
import random
import shutil
import struct

import pytest
from conftest import ROOT

from core.errors import APIError
from core.models import BadModel, ModelFolder, choose, inspect, locate

DEMO = os.path.join(ROOT, "models", "demo.gguf")


def text(value):
    return struct.pack("<Q", len(value)) + value.encode("utf-8")


def gguf(values, tensors=(), data=b"", version=3):
    """Return a small GGUF file: values as {key: (type, packed)}, tensors as (name, dimensions, type, offset)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, (kind, packed) in values.items():
        out += text(key) + struct.pack("<I", kind) + packed
    for name, dimensions, kind, offset in tensors:
        out += text(name) + struct.pack("<I", len(dimensions)) + struct.pack("<%dQ" % len(dimensions), *dimensions)
        out += struct.pack("<IQ", kind, offset)
    return out + b"\0" * (-len(out) % 32) + data


def number(value):
    return (4, struct.pack("<I", value))


LLAMA = {
    "general.architecture": (8, text("llama")),
    "llama.block_count": number(3),
    "llama.embedding_length": number(64),
    "llama.attention.head_count": number(8),
    "llama.attention.head_count_kv": number(2),
    "llama.context_length": number(2048),
}


@pytest.fixture
def folder(tmp_path):
    shutil.copy(DEMO, tmp_path / "demo.gguf")
    return tmp_path


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return str(path)


def test_the_demo_model_is_small_whole_and_not_quantized():
    demo = inspect(DEMO)
    assert demo.problem == ""
    assert demo.architecture == "llama" and demo.quantization in ("F16", "F32")
    assert demo.size <= 5_000_000 and 1_000_000 <= demo.parameters <= 4_000_000
    assert 2048 <= demo.vocabulary <= 4096


def test_a_header_gives_the_facts_that_memory_is_planned_with(tmp_path):
    tensors = [("a", (64, 32), 12, 0), ("b", (64,), 0, 1152)]
    model = inspect(write(tmp_path, "a.gguf", gguf(LLAMA, tensors, b"x" * 1408)))
    assert model.problem == ""
    assert model.kv_bytes == 3 * 2 * (8 + 8) * 2  # layers x heads x (key + value) x two bytes
    assert (model.parameters, model.quantization, model.context_length) == (64 * 32 + 64, "Q4_K", 2048)
    assert model.quantized


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "no GGUF file"),
        (b"GG", "no GGUF file"),
        (b"PK\x03\x04 a zip file, say", "no GGUF file"),
        (b"GGUF", "cut short"),
        (b"GGUF" + struct.pack("<I", 99) + b"\0" * 64, "version is 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), "more entries"),
        (gguf({"a": (9, struct.pack("<IQ", 8, 1 << 40))}), "cut short"),
        (gguf({"a": (9, struct.pack("<IQ", 9, 5))}), "no model has"),
        (gguf({"a": (77, b"")}), "unknown type 77"),
        (gguf({}), "no architecture"),
        (gguf({"general.architecture": (8, text("clip"))}), "image encoder"),
        (gguf(dict(LLAMA, **{"general.alignment": number(0)})), "alignment"),
        (gguf(LLAMA, [("a", (1 << 40, 4), 0, 0)], b"x" * 64), "cut short"),
    ],
)
def test_what_is_no_model_says_why(tmp_path, data, why):
    assert why in inspect(write(tmp_path, "bad.gguf", data)).problem


def test_a_file_cut_anywhere_is_refused(tmp_path):
    with open(DEMO, "rb") as file:
        whole = file.read()
    rng = random.Random(7)
    for size in [1, 4, 8, 24, len(whole) - 1] + [rng.randrange(len(whole)) for _ in range(40)]:
        assert inspect(write(tmp_path, "cut.gguf", whole[:size])).problem, size


def test_a_header_of_noise_never_raises(tmp_path):
    with open(DEMO, "rb") as file:
        head = bytearray(file.read(4096))
    rng = random.Random(3)
    for _ in range(200):
        noisy = bytearray(head)
        for _ in range(8):
            noisy[rng.randrange(4, 600)] = rng.randrange(256)
        assert inspect(write(tmp_path, "noise.gguf", bytes(noisy))).problem


SPELLINGS = ["demo.gguf", "demo", "demo:latest", "demo.gguf:latest", "DEMO", "Demo.GGUF:latest"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_model_is_found_however_its_name_is_spelt(folder, name):
    assert ModelFolder(str(folder)).find(name).name == "demo.gguf"


def test_the_exact_spelling_wins_where_two_files_differ_in_case_only(tmp_path):
    for name in ("Twin.gguf", "twin.gguf"):
        shutil.copy(DEMO, tmp_path / name)
    models = ModelFolder(str(tmp_path))
    found = {name: models.find(name).name for name in ("Twin", "twin", "twin.gguf")}
    assert found == {"Twin": "Twin.gguf", "twin": "twin.gguf", "twin.gguf": "twin.gguf"}


@pytest.mark.parametrize("name", [":latest", ".gguf"])
def test_an_ending_alone_names_nothing(folder, name):
    with pytest.raises(APIError):
        ModelFolder(str(folder)).find(name)


@pytest.mark.parametrize("name", ["../demo.gguf", "/etc/passwd", "..", "", "demo.gguf/", "a" * 5000, "\0"])
def test_nothing_outside_the_folder_can_be_named(folder, name):
    shutil.copy(DEMO, folder.parent / "demo.gguf")
    with pytest.raises(APIError) as raised:
        ModelFolder(str(folder)).find(name)
    assert raised.value.status == 404 and raised.value.param == "model_name"
    assert "demo.gguf" in raised.value.message  # says what there is


def test_a_broken_file_is_listed_with_its_problem_and_can_not_be_asked_for(folder):
    write(folder, "broken.gguf", b"not a model")
    models = ModelFolder(str(folder))
    assert [bool(each.problem) for each in models.list()] == [True, False]
    with pytest.raises(APIError) as raised:
        models.find("broken.gguf")
    assert (raised.value.status, raised.value.code) == (500, "model_broken")


def test_a_replaced_file_is_read_anew(folder):
    models = ModelFolder(str(folder))
    assert not models.find("demo").problem
    write(folder, "demo.gguf", b"replaced")
    assert models.list()[0].problem


def test_the_parts_of_a_split_model_count_as_one(tmp_path):
    write(tmp_path, "big-00001-of-00002.gguf", gguf(LLAMA))
    write(tmp_path, "big-00002-of-00002.gguf", gguf(LLAMA))
    models = ModelFolder(str(tmp_path)).list()
    assert [each.name for each in models] == ["big-00001-of-00002.gguf"]
    assert models[0].size == 2 * len(gguf(LLAMA))


def test_a_missing_part_is_a_problem(tmp_path):
    write(tmp_path, "big-00001-of-00002.gguf", gguf(LLAMA))
    assert "00002" in ModelFolder(str(tmp_path)).list()[0].problem


def test_the_demo_gives_way_to_a_model_of_the_users(folder):
    assert choose(str(folder), "").name == "demo.gguf"
    write(folder, "zebra.gguf", gguf(LLAMA))
    assert choose(str(folder), "").name == "zebra.gguf"
    assert choose(str(folder), "demo").name == "demo.gguf"


def test_a_folder_that_can_not_serve_says_why(tmp_path):
    with pytest.raises(BadModel, match="holds no .gguf file"):
        choose(str(tmp_path), "")
    write(tmp_path, "bad.gguf", b"junk")
    with pytest.raises(BadModel, match="bad.gguf: it is no GGUF file"):
        choose(str(tmp_path), "")
    with pytest.raises(BadModel, match="does not exist"):
        locate(str(tmp_path / "missing"), "")
    with pytest.raises(BadModel, match="there is no file"):
        locate("", str(tmp_path / "missing.gguf"))


def test_a_model_given_as_a_path_names_its_folder(folder):
    assert locate("", str(folder / "demo.gguf")) == (str(folder), "demo.gguf")
