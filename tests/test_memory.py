"""What memory there is, as the kernel tells it, in files that are made up; and what models need of it."""

import sys
from dataclasses import replace

import pytest
from conftest import MODELS

from backend import Config
from core import memory
from core.models import ModelFile, inspect
from core.needs import lacks_memory, need_of, verdict

GB = 10**9
MEMINFO = "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable: 4000000 kB\nSwapTotal: 2000000 kB\n"
MEMINFO += "SwapFree: 1000000 kB\n"
BIG = ModelFile("big.gguf", "/m/big.gguf", 4 * GB, "llama", quantization="Q4_K", context_length=4096, kv_bytes=100_000)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux' files")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Let the kernel's files be those that a test writes; there is no other limit."""
    monkeypatch.setattr(memory, "ROOT", str(tmp_path))
    monkeypatch.setattr(memory, "_limit_to_map", lambda: None)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


# ------------------------------------------------------------------------------------------- what there is


@linux
def test_without_control_groups_the_machines_figures_count(kernel):
    kernel("proc/meminfo", MEMINFO)
    assert memory.available_memory() == 4_000_000 * 1024
    assert memory.spare_memory() == 5_000_000 * 1024
    assert memory.total_memory() == 10_000_000 * 1024


@linux
def test_a_control_groups_limit_counts_and_its_cached_files_are_free(kernel):
    kernel("proc/meminfo", MEMINFO)
    kernel("proc/self/cgroup", "0::/app.slice/one\n")
    one = "sys/fs/cgroup/app.slice/one/"
    kernel(one + "memory.max", "1000000000\n")
    kernel(one + "memory.current", "900000000\n")
    kernel(one + "memory.stat", "anon 100\ninactive_file 300000000\nactive_file 100000000\nfile 500000000\n")
    kernel(one + "memory.swap.max", "0\n")
    assert memory.available_memory() == memory.spare_memory() == 500_000_000
    assert memory.total_memory() == 1 * GB


@linux
def test_the_narrowest_group_of_those_around_a_process_counts(kernel):
    kernel("proc/meminfo", MEMINFO)
    kernel("proc/self/cgroup", "0::/outer/inner\n")
    for path, limit, used in (("outer/inner/", "max", 5), ("outer/", "2000000", 500_000)):
        kernel("sys/fs/cgroup/" + path + "memory.max", limit)
        kernel("sys/fs/cgroup/" + path + "memory.current", str(used))
    assert memory.available_memory() == 1_500_000


@linux
def test_the_first_version_of_control_groups_is_known_too_and_a_container_sees_its_own_as_the_top(kernel):
    kernel("proc/meminfo", MEMINFO)
    kernel("proc/self/cgroup", "5:cpu:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n")
    top = "sys/fs/cgroup/memory/"
    kernel(top + "memory.limit_in_bytes", "3000000\n")
    kernel(top + "memory.usage_in_bytes", "1000000\n")
    kernel(top + "memory.stat", "inactive_file 7\ntotal_inactive_file 400\ntotal_active_file 100\n")
    kernel(top + "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert memory.available_memory() == 2_000_500
    assert memory.oom_kills() == 3
    kernel(top + "memory.limit_in_bytes", "9223372036854771712\n")  # nobody has set one
    assert memory.available_memory() == 4_000_000 * 1024


@linux
def test_kills_are_those_of_the_own_group_and_only_without_one_the_machines(kernel):
    assert memory.oom_kills() is None
    kernel("proc/vmstat", "pgfault 12\noom_kill 7\n")
    assert memory.oom_kills() == 7
    kernel("proc/self/cgroup", "0::/one\n")
    kernel("sys/fs/cgroup/one/memory.current", "1")
    kernel("sys/fs/cgroup/one/memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n")
    assert memory.oom_kills() == 1


@linux
def test_where_the_kernel_tells_nothing_nothing_is_known(kernel):
    known = (memory.available_memory, memory.spare_memory, memory.total_memory, memory.private_memory)
    assert [each() for each in known] == [None] * 4
    kernel("proc/self/status", "VmRSS:\t  70000 kB\nRssAnon:\t  40000 kB\n")
    assert (memory.resident_memory(), memory.private_memory()) == (70_000 * 1024, 40_000 * 1024)


def test_the_resident_size_of_this_process_is_known():
    assert 5 << 20 < memory.resident_memory() < 1 << 40


# ------------------------------------------------------------------------------------------- what models need


def need(model=BIG, slots=4, gpu=False, **settings):
    return need_of(Config(**settings), model, slots, gpu)


def test_what_certainly_is_needed_is_the_context_and_the_weights_that_every_cpu_has_repacked():
    assert need().least == 4 * 4096 * 100_000 + 2 * GB
    assert need(ctx_size=1024).least == 4 * 1024 * 100_000 + 2 * GB
    assert need().own > need().least + 2 * GB


@pytest.mark.parametrize("settings", [{"safe_mode": True}, {}])
def test_mapped_weights_are_not_needed_for_oneself(settings):
    model = BIG if settings else ModelFile("f.gguf", "/f", 4 * GB, quantization="F16", context_length=4096)
    figures = need(model, **settings)
    assert figures.mapped == 4 * GB and figures.least < 2 * GB and figures.own < 3 * GB and not figures.copied


@pytest.mark.parametrize("settings", [{"no_mmap": True}, {"mlock": True}])
def test_weights_that_are_read_or_locked_are_needed_whole(settings):
    assert need(**settings).least > 5 * GB


def test_without_flash_attention_the_scores_of_the_main_context_and_the_siding_count():
    model = replace(BIG, heads=32)
    scores = 4096 * 128 * 32 * 4
    assert need(model).own - need(BIG).own == 2 * scores
    assert need(model, siding="off").own - need(BIG, siding="off").own == scores
    for settings in ({"flash_attn": "on"}, {"cache_type_v": "q8_0"}):
        assert need(model, **settings).own == need(BIG, **settings).own


def test_a_draft_model_is_counted():
    demo = inspect(MODELS + "/demo.gguf")
    more = need(model_draft=demo.path).own - need().own
    assert 4 * demo.context_length * demo.kv_bytes < more < 1 * GB


def test_what_can_not_be_known_is_not_held_against_a_model():
    mixed = ModelFile("x.gguf", "/x", 4 * GB, quantization="Q6_K", context_length=1 << 20, kv_bytes=10**6, mixed=True)
    assert need(mixed).least == 0 and need(mixed).own > 16 * GB
    assert need(gpu=True).least == 0


def test_the_demo_model_keeps_every_token_in_every_layer():
    model = inspect(MODELS + "/demo.gguf")
    assert not model.mixed and need(model).least == 4 * 1024 * model.kv_bytes


def test_a_model_is_refused_by_its_least_and_warned_of_by_its_whole_need():
    figures = need()
    assert verdict("big.gguf", figures, 10 * GB) == ("", "")
    assert verdict("big.gguf", figures, None) == ("", "")
    found = verdict("big.gguf", figures, 5 * GB)
    assert not found.refusal and "big.gguf may not fit: it needs about 6." in found.warning
    refusal = verdict("big.gguf", figures, 3 * GB).refusal
    assert refusal == "big.gguf is too large: it needs at least 3.6 GB of memory, 3.0 GB are free."
    assert not verdict("big.gguf", figures, 3 * GB, 4 * GB).refusal  # so much there may be later


@pytest.mark.parametrize(
    "text",
    [
        "ggml_gallocr_reserve_n_impl: failed to allocate CPU buffer of size 107229216",
        "error loading model: mmap failed: Cannot allocate memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "MemoryError",
    ],
)
def test_complaints_of_too_little_memory_are_known(text):
    assert lacks_memory(text) and not lacks_memory("wrong magic number") and not lacks_memory("may not fit")
