"""Files in the models folder that are no models, or broken ones: the others are served all the same.

A row is (what the file is called, its bytes). A request that names it gets an error of its own, within seconds, from
the same process, and the next good request is answered.
"""

import os
import shutil
import struct

import pytest
from conftest import ROOT

from hostile.enemy import Fort, get, post, small_generate, unharmed

with open(os.path.join(ROOT, "models", "demo.gguf"), "rb") as file:
    DEMO = file.read()


def header(tensors, values, rest=b"", version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, values) + rest


def text(data, length=None):
    return struct.pack("<Q", len(data) if length is None else length) + data


def value(key, kind, data):
    return text(key) + struct.pack("<I", kind) + data


MOST = (1 << 64) - 1
FILES = [
    ("empty.gguf", b""),
    ("one-byte.gguf", b"G"),
    ("only-magic.gguf", b"GGUF"),
    ("another-magic.gguf", b"GGML" + DEMO[4:]),
    ("zeros.gguf", b"\0" * 100000),
    ("a-text.gguf", b"hello\n" * 1000),
    ("another-version.gguf", header(0, 0, version=99)),
    ("other-bytes-first.gguf", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)),
    ("no-values.gguf", header(0, 0)),
    ("2^64-values.gguf", header(0, MOST)),
    ("2^64-tensors.gguf", header(MOST, 0)),
    ("2^40-values.gguf", header(0, 1 << 40, value(b"a", 4, b"\1\0\0\0") * 100)),
    ("a-key-of-2^64.gguf", header(0, 1, text(b"key", MOST))),
    ("a-key-of-2^40.gguf", header(0, 1, text(b"key", 1 << 40))),
    ("an-unknown-kind.gguf", header(0, 1, value(b"a", 99, b"\0" * 8))),
    ("a-text-of-2^63.gguf", header(0, 1, value(b"a", 8, text(b"x", 1 << 63)))),
    ("a-list-of-2^60.gguf", header(0, 1, value(b"a", 9, struct.pack("<IQ", 4, 1 << 60)))),
    ("a-list-of-2^60-texts.gguf", header(0, 1, value(b"a", 9, struct.pack("<IQ", 8, 1 << 60)))),
    ("lists-of-lists.gguf", header(0, 1, value(b"a", 9, struct.pack("<IQ", 9, 1) * 2000))),
    ("a-list-of-an-unknown-kind.gguf", header(0, 1, value(b"a", 9, struct.pack("<IQ", 77, 3)))),
    ("a-key-that-is-no-text.gguf", header(0, 1, value(b"\xff\xfe\x00", 4, b"\1\0\0\0"))),
    ("the-same-key-twice.gguf", header(0, 2, value(b"general.name", 8, text(b"a")) * 2)),
    ("an-odd-architecture.gguf", header(0, 1, value(b"general.architecture", 8, text(b"no-such\n\x1b[31m\xff")))),
    ("an-architecture-that-is-a-number.gguf", header(0, 1, value(b"general.architecture", 4, b"\1\0\0\0"))),
    ("cut-in-the-head.gguf", DEMO[:100]),
    ("cut-in-the-values.gguf", DEMO[:20000]),
    ("cut-in-the-middle.gguf", DEMO[: len(DEMO) // 2]),
    ("cut-at-the-end.gguf", DEMO[:-1000]),
    ("a\nnewline.gguf", b"GGUF"),
    ("\x1b[31mred.gguf", b"GGUF"),
    ("'quotes\" & <b>.gguf", b"GGUF"),
    ("..gguf", b"GGUF"),
    ("x" * 250 + ".gguf", b"GGUF"),
]
BROKEN = [name for name, _ in FILES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the demo model and all that is none."""
    if os.name != "posix":
        pytest.skip("such names are POSIX'")
    place = tmp_path_factory.mktemp("models")
    shutil.copy(os.path.join(ROOT, "models", "demo.gguf"), str(place))
    for name, data in FILES:
        with open(os.path.join(str(place), name), "wb") as out:
            out.write(data)
    with open(os.path.join(os.fsencode(str(place)), b"\xff\xfe.gguf"), "wb") as out:
        out.write(b"GGUF")
    os.mkdir(os.path.join(str(place), "a-folder.gguf"))
    os.symlink("itself.gguf", os.path.join(str(place), "itself.gguf"))
    os.symlink("/etc/passwd", os.path.join(str(place), "passwd.gguf"))
    os.symlink("/dev/zero", os.path.join(str(place), "endless.gguf"))
    os.mkfifo(os.path.join(str(place), "pipe.gguf"))
    return str(place)


@pytest.fixture(scope="module")
def among(folder):
    """A backend that has such a folder."""
    arguments = ("--child", "--models", folder, "--model", "demo.gguf", "--port", 0, "--threads", 1, "--ctx-size", 256)
    fort = Fort("backend.py", arguments, small_generate, "ready")
    yield fort
    fort.close()


def test_a_folder_of_broken_files_is_listed(among):
    with unharmed(among):
        for path in ("/models", "/v1/models", "/api/tags", "/status", "/metrics"):
            reply = get(among.port, path)
            assert reply.status == 200
            reply.body.decode("utf-8")
        listed = {each["name"] for each in get(among.port, "/models").json["models"]}
        assert "demo.gguf" in listed
        usable = {each["id"] for each in get(among.port, "/v1/models").json["data"]}
        assert "demo.gguf" in usable and "cut-in-the-head.gguf" not in usable
        assert b"root:" not in get(among.port, "/models").body


@pytest.mark.parametrize("name",
                         BROKEN + ["a-folder.gguf", "itself.gguf", "passwd.gguf", "endless.gguf", "pipe.gguf",
                                   "\udcff\udcfe.gguf"])
def test_a_request_for_a_broken_file_fails_alone(among, name):
    with unharmed(among):
        reply = post(among.port, "/generate", {"model_name": name, "prompt": "Hi", "max_tokens": 1}, patience=20)
        assert reply.status in (200, 400, 404, 500, 503) and len(reply.body) < 4096 and b"root:" not in reply.body
        if reply.status == 200:  # what is no model's file is a name like any other: it means the one that is good
            assert reply.json["model"] == "demo.gguf" and name not in BROKEN
        else:
            assert reply.error["message"] and reply.error["code"] != "internal_error"
