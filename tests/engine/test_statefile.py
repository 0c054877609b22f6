"""Files of a slot are llama.cpp's own: it reads ours, and we read its."""

import ctypes

import llama_cpp
import numpy
import pytest
from conftest import LASTING
from engines import RAMBLING, asked, launch, next_event, run

from core.engine import statefile
from core.engine.keeping import SlotTask, save
from core.errors import APIError


@pytest.fixture(scope="module")
def kept():
    """What a slot of three holds after an answer, and a function that calls llama.cpp in the engine's thread."""
    engine = launch(slots=3)
    run(engine, prompt="Once upon a time", max_tokens=6)

    def inside(work):
        task = SlotTask(0, lambda running, slot: work(running.model.context))
        engine.enqueue(task)
        return task.outcome(30)[0]

    task = SlotTask(0, save)
    engine.enqueue(task)
    yield task.outcome(30)[0], inside
    engine.stop()


def whole(kept, facts=None):
    pieces = statefile.written(kept.tokens, kept.cells, facts or {"model": "m"})
    return b"".join(bytes(piece) for piece in pieces)


def test_what_is_written_is_read_again(kept):
    file = statefile.read(whole(kept[0], {"model": "ours"}))
    assert file.tokens == kept[0].tokens and file.facts["model"] == "ours"
    assert bytes(file.cells.body()) == bytes(kept[0].cells.body())


def test_llama_cpp_reads_our_file_in_a_context_of_one_sequence(kept, tmp_path):
    path = tmp_path / "slot.bin"
    path.write_bytes(whole(kept[0]))
    engine = launch(slots=1)
    tokens, count = (ctypes.c_int32 * 500)(), ctypes.c_size_t()

    def load(running, slot):
        context = running.model.context
        read = llama_cpp.llama_state_seq_load_file(
            context.pointer, str(path).encode(), 0, tokens, 500, ctypes.byref(count)
        )
        return read, context.positions(0)

    task = SlotTask(0, load)
    engine.enqueue(task)
    read, positions = task.outcome(30)[0]
    engine.stop()
    assert read > 0 and positions == len(kept[0].tokens)
    assert tokens[: count.value] == [-1, 1, len(kept[0].tokens), *kept[0].tokens, 0]
    assert (statefile.MAGIC, statefile.VERSION) == (llama_cpp.LLAMA_STATE_SEQ_MAGIC, llama_cpp.LLAMA_STATE_SEQ_VERSION)


@pytest.mark.parametrize("packed", [True, False], ids=["as servers do now", "as they did"])
def test_a_file_that_llama_cpp_has_written_is_read(kept, tmp_path, packed):
    path, tokens = tmp_path / "slot.bin", kept[0].tokens
    words = [-1, 1, len(tokens), *tokens, 0] if packed else tokens
    array = (ctypes.c_int32 * len(words))(*words)
    assert kept[1](
        lambda context: llama_cpp.llama_state_seq_save_file(context.pointer, str(path).encode(), 0, array, len(words))
    )
    file = statefile.read(path.read_bytes())
    assert file.tokens == tokens and file.facts is None
    assert numpy.array_equal(file.cells.body(), kept[0].cells.body())


def test_a_changed_byte_of_the_cells_is_noticed(kept):
    data = bytearray(whole(kept[0]))
    data[len(data) // 2] ^= 1
    with pytest.raises(statefile.BadStateFile, match="checksum"):
        statefile.read(bytes(data))


def test_a_task_that_waits_for_its_slot_fails_when_the_engine_ends():
    engine = launch(slots=1, **LASTING)
    generation = asked(sampling=RAMBLING, max_tokens=7000)
    engine.submit(generation)
    next_event(generation)
    task = SlotTask(0, save)
    engine.enqueue(task)
    assert task.outcome(0.05) is None
    engine.stop()
    with pytest.raises(APIError) as failed:
        task.outcome(30)
    assert failed.value.status == 503


@pytest.mark.parametrize("words", [[-1], [-1, 2, 1, 5, 0], [-1, 1, 9, 5, 0], [-1, 1, 1, 5, 1], [-1, 1, -3, 5, 0]])
def test_tokens_in_another_form_are_refused(kept, words):
    data = statefile.struct.pack("<III%di" % len(words), statefile.MAGIC, statefile.VERSION, len(words), *words)
    with pytest.raises(statefile.BadStateFile):
        statefile.read(data + bytes(kept[0].cells.body()))


def test_cells_that_are_not_those_of_the_tokens_are_refused(kept):
    tokens = [*kept[0].tokens, 5]
    data = statefile.struct.pack("<III%di" % len(tokens), statefile.MAGIC, statefile.VERSION, len(tokens), *tokens)
    with pytest.raises(statefile.BadStateFile, match="cells"):
        statefile.read(data + bytes(kept[0].cells.body()))
