"""A program's settings, from its defaults, its environment and its command line."""
from dataclasses import dataclass
from typing import Optional, Tuple

import pytest

import backend
from core import llamaserver, options
from core.http.access import check_key
from core.options import Foreign, between, setting, whole_or


@dataclass(frozen=True)
class Settings:
    host: str = setting("127.0.0.1", "address to listen on", "network")
    port: int = setting(9000, "port to listen on", "network", check=between(0, 65535))
    api_key: Tuple[str, ...] = setting((), "a key", "access", many=True, secret=True, metavar="KEY")
    backend: Tuple[str, ...] = setting((), "a backend; repeatable", "network", many=True, metavar="URL")
    admin_key: str = setting("", "one key", "access", secret=True, check=check_key, metavar="KEY")
    step_target: float = setting(0.25, "seconds a step may take", "engine", check=between(0.01, 60, float))
    slots: int = setting(4, "100 % of the requests at once", "engine", flags=("--parallel", "-np"), check=between(1, 9))
    note: str = setting("", "anything", "engine")
    verbose: bool = setting(False, "show more", "engine")


def parse(*argv, positional=("host", "port"), **environ):
    environ = {"COMEAPI_" + name.upper(): text for name, text in environ.items()}
    return options.parse(Settings, "A test.", positional, argv, environ)


@pytest.fixture
def refused(capsys):
    """Parse what is wrong, and return the one line about it."""

    def parse_wrong(*argv, **environ):
        with pytest.raises(SystemExit) as caught:
            parse(*argv, **environ)
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.endswith("\n") and err.count("\n") == 1
        return err

    return parse_wrong


# ------------------------------------------------------------------------------------------------- sources


def test_without_anything_the_defaults_hold():
    assert parse() == Settings()


def test_the_environment_wins_over_the_default():
    assert parse(port="1", step_target="2.5", note="a b") == Settings(port=1, step_target=2.5, note="a b")


def test_the_command_line_wins_over_the_environment():
    assert parse("--port", "2", "--backend=b", port="1", backend="a", note="kept") == Settings(
        port=2, backend=("b",), note="kept"
    )


def test_a_position_wins_over_the_environment_too():
    assert parse("a", "2", host="b", port="1") == Settings(host="a", port=2)


def test_what_is_set_is_named_if_it_is_set_to_the_default_too():
    environ = {"COMEAPI_PORT": str(Settings().port)}
    named = options.named(Settings, ["host"], ["a", "--note=" + Settings().note], environ)
    assert named == {"host", "note", "port"}
    assert options.named(Settings, ["host"], [], {}) == frozenset()


def test_the_real_environment_is_read_where_no_other_is_given(monkeypatch):
    monkeypatch.setenv("COMEAPI_PORT", "77")
    assert options.parse(Settings, "A test.", (), []).port == 77


@pytest.mark.parametrize(
    "argv",
    [
        ("0.0.0.0", "8080"),
        ("0.0.0.0", "--port", "8080"),
        ("0.0.0.0", "--port=8080"),
        ("--port", "8080", "0.0.0.0"),
        ("--host=0.0.0.0", "--port=8080"),
        ("0.0.0.0", "8080", "--slots", "4"),
        ("--slots", "4", "0.0.0.0", "8080"),
    ],
)
def test_positions_and_options_are_two_ways_to_say_the_same(argv):
    assert parse(*argv) == Settings(host="0.0.0.0", port=8080)


@pytest.mark.parametrize("flag", ["--slots", "--parallel", "-np"])
def test_an_option_has_its_other_names(flag):
    assert parse(flag, "8").slots == 8


def test_a_field_with_several_words_is_spelt_with_hyphens():
    assert parse("--step-target", "1").step_target == 1.0


# ------------------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    "argv, named",
    [
        (("--port", "x"), "--port"),
        (("--port", "65536"), "--port"),
        (("--port=-1",), "--port"),
        (("--port", "1.5"), "--port"),
        (("--port", ""), "--port"),
        (("--port",), "--port"),
        (("--step-target", "nan"), "--step-target"),
        (("--step-target", "inf"), "--step-target"),
        (("--slots", "10"), "--slots"),
        (("-np", "two\nlines"), "--slots"),
        (("host", "x"), "port"),
        (("host", "1", "surplus"), "surplus"),
        (("--nonsense",), "--nonsense"),
        (("--por", "1"), "--por"),
        (("--verbose=yes",), "--verbose"),
    ],
)
def test_a_wrong_argument_ends_the_program_with_one_line_that_names_it(refused, argv, named):
    assert named in refused(*argv)


@pytest.mark.parametrize(
    "name, text", [("port", "x"), ("port", "65536"), ("port", "a\nb"), ("step_target", "nan"), ("verbose", "maybe")]
)
def test_a_wrong_variable_ends_the_program_with_one_line_that_names_it(refused, name, text):
    assert "COMEAPI_" + name.upper() in refused(**{name: text})


def test_a_wrong_value_is_told_with_what_is_right(refused):
    assert "'70000' is not a whole number from 0 to 65535" in refused("--port", "70000")
    assert "'-1' is not a whole number from 0 to 65535" in refused(port="-1")


def test_fail_says_one_line_and_ends_with_its_status(capsys):
    with pytest.raises(SystemExit) as caught:
        options.fail("no model", 3)
    assert caught.value.code == 3
    assert capsys.readouterr().err.endswith(": error: no model\n")


# ---------------------------------------------------------------------------------- repeated ones and flags


def test_a_repeated_option_keeps_every_value_in_order():
    assert parse("--backend", "b", "--backend=a", "--backend", "b").backend == ("b", "a", "b")


@pytest.mark.parametrize("text", ["a,b", "a b", " a , b ", "a\nb\n", "a,,b,"])
def test_a_variable_holds_several_values_with_commas_or_spaces_between(text):
    assert parse(backend=text).backend == ("a", "b")


def test_an_empty_variable_holds_none():
    assert parse(backend="", api_key="").backend == ()


@pytest.mark.parametrize("text", ["1", "true", "TRUE", "yes", "On"])
def test_a_flag_is_on_in_the_environment(text):
    assert parse(verbose=text).verbose is True


@pytest.mark.parametrize("text", ["0", "false", "False", "no", "OFF", ""])
def test_a_flag_is_off_in_the_environment(text):
    assert parse(verbose=text).verbose is False


def test_a_flag_is_on_where_the_command_line_has_it():
    assert parse("--verbose").verbose is True
    assert parse("--verbose", verbose="no").verbose is True


# ------------------------------------------------------------------------------------------------- secrets


@pytest.fixture
def key_file(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "keys"
        path.write_bytes(text.encode(encoding))
        return "@%s" % path

    return write


def test_a_file_holds_one_key_a_line_with_comments_and_blank_lines(key_file):
    name = key_file("# ours\nfirst\n\n  second  \n   \n#third\nfourth\r\nfünf")
    keys = ("first", "second", "fourth", "fünf")
    assert parse("--api-key", name).api_key == keys
    assert parse(api_key=name).api_key == keys
    assert parse("--api-key", "zero", "--api-key", name, "--api-key=last").api_key == ("zero",) + keys + ("last",)


def test_an_indented_comment_is_no_key(key_file):
    assert parse("--api-key", key_file("first\n  # a comment\n")).api_key == ("first",)


def test_a_file_from_windows_gives_its_first_key_without_a_mark(key_file):
    assert parse("--api-key", key_file("first\r\nsecond\r\n", "utf-8-sig")).api_key == ("first", "second")


def test_a_key_file_without_a_key_opens_no_door(refused, key_file):
    """Whoever names a key file wants a key to be asked for; without one, everybody would be let in."""
    assert "keys" in refused("--api-key", key_file("# nothing yet\n"))


def test_a_missing_key_file_ends_the_program_with_one_line_that_names_it(refused, tmp_path):
    path = str(tmp_path / "none")
    assert path in refused("--api-key", "@" + path)
    assert path in refused(api_key="@" + path)


def test_a_key_file_that_is_not_text_ends_the_program(refused, key_file):
    assert "keys" in refused("--api-key", key_file("\xff\xfe", "latin-1"))


def test_a_file_is_read_wherever_a_key_is_taken_and_its_first_is_the_one(key_file):
    name = key_file("# ours\nfirst\nsecond\n")
    assert parse("--admin-key", name).admin_key == parse(admin_key=name).admin_key == "first"
    assert parse("--admin-key", "first").admin_key == "first"
    assert parse(admin_key="").admin_key == ""


def test_a_single_keys_file_must_be_there(refused, tmp_path):
    path = str(tmp_path / "none")
    assert path in refused("--admin-key", "@" + path) and path in refused(admin_key="@" + path)


def test_an_at_sign_means_a_file_only_for_secrets():
    assert parse("--backend", "@home", "--note", "@note") == Settings(backend=("@home",), note="@note")


# ---------------------------------------------------------------------------------------------------- help


@pytest.fixture
def help_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def show(**environ):
        with pytest.raises(SystemExit) as caught:
            parse("--help", **environ)
        assert caught.value.code == 0
        return capsys.readouterr().out

    return show


def test_help_shows_groups_defaults_and_variables(help_text):
    text = help_text()
    for group in ("network:", "access:", "engine:"):
        assert "\n" + group in text
    assert "A test." in text
    assert "--port N" in text and "(default 9000)" in text
    assert "(default 127.0.0.1)" in text and "(default 0.25)" in text
    assert "--parallel" in text and "-np" in text
    assert "100 % of the requests" in text
    assert "--port reads COMEAPI_PORT" in text
    _, listed = text.split("A test.")
    assert listed.index("network:") < listed.index("  --port N") < listed.index("access:") < listed.index("  --api-key")


@dataclass(frozen=True)
class Mixed:
    child: bool = setting(False, "started by another program", "other")
    policy: str = setting("a", "a policy", "routing")
    port: int = setting(9000, "a port", "network")
    backends: int = setting(0, "how many", "plan")


def test_help_begins_with_what_one_wants_first_and_ends_with_what_programs_use(capsys):
    with pytest.raises(SystemExit):
        options.parse(Mixed, "A test.", argv=["--help"])
    told = capsys.readouterr().out
    places = [told.index("\n%s:" % group) for group in ("plan", "network", "routing", "other")]
    assert places == sorted(places)


def test_help_shows_no_secret(help_text):
    assert "hunter2" not in help_text(api_key="hunter2")


def test_no_error_shows_a_secret(refused):
    assert "hunter2" not in refused("--port", "x", "--api-key", "hunter2")


def test_help_works_whatever_the_environment_holds(help_text):
    assert "--port" in help_text(port="nonsense")


# -------------------------------------------------------------------------------------- for another program

EVERY = ("host", "port", "backend", "step_target", "slots", "note", "verbose")


@pytest.mark.parametrize(
    "config",
    [
        Settings(),
        Settings(port=1, step_target=1.5, slots=9, verbose=True),
        Settings(note="two words"),
        Settings(note="--looks-like-an-option"),
        Settings(note="a=b"),
        Settings(backend=("http://a", "http://b")),
    ],
)
@pytest.mark.parametrize("environ", [{}, {"port": "7", "note": "from outside"}])
def test_a_program_started_with_as_arguments_has_the_same_settings(config, environ):
    assert parse(*options.as_arguments(config, EVERY), **environ) == config


def test_as_arguments_holds_only_the_fields_asked_for():
    text = " ".join(options.as_arguments(Settings(port=1, note="x", api_key=("hunter2",)), ("port",)))
    assert "--port" in text
    assert "note" not in text and "hunter2" not in text


# ------------------------------------------------------------------------- another server's command lines


@dataclass(frozen=True)
class Understanding(Settings):
    """Settings that another server's command lines can fill."""

    slots: int = setting(4, "slots", "engine", flags=("--parallel",), check=whole_or({"-1": 4}, 1, 9), bare="-1")
    flash: str = setting("auto", "flash", "engine", flags=("-fa",), bare="on", variables=("THEIR_FLASH",))
    cache: bool = setting(True, "cache", "engine", off=("--no-cache",), variables=("THEIR_CACHE",))
    names: Tuple[str, ...] = setting((), "names", "engine", many=True, commas=True)
    top_k: Optional[int] = setting(None, "top", "engine", check=between(0, 100))


THEIRS = (
    Foreign(("--jinja", "--no-jinja"), 0, "templates are Jinja", False),
    Foreign(("-C", "--cpu-mask"), 1, "start it under taskset", False),
    Foreign(("--tools",), 1, "the server runs no tools", True),
)


def understand(*argv, **environ):
    return options.parse(Understanding, "A test.", ("host",), argv, environ, foreign=THEIRS)


def test_an_option_may_stand_without_a_value_where_it_has_one_for_that():
    assert understand("-fa", "--slots").flash == "on" and understand("--slots", "-fa").slots == 4
    assert understand("-fa", "off", "--parallel", "-1") == Understanding(flash="off")


def test_a_flag_can_be_turned_off_and_a_child_is_told():
    config = understand("--no-cache")
    assert config.cache is False and understand("--no-cache", "--cache").cache is True
    assert options.as_arguments(config, ["cache", "top_k"]) == ("--no-cache",)  # what is None is not passed on


def test_one_value_may_hold_several_with_commas_between():
    assert understand("--names", "a,b", "--names=c,").names == ("a", "b", "c")


def test_underscores_in_an_option_are_hyphens():
    assert understand("--top_k", "5", "--step_target=1") == Understanding(top_k=5, step_target=1.0)
    assert understand("--note", "a_b").note == "a_b"


def test_the_other_servers_variables_count_after_our_own():
    assert understand(THEIR_FLASH="off", THEIR_CACHE="disabled") == Understanding(flash="off", cache=False)
    assert understand(THEIR_FLASH="off", COMEAPI_FLASH="on").flash == "on"
    assert understand("-fa", "auto", THEIR_FLASH="off").flash == "auto"
    assert options.parse(Understanding, "A test.", (), [], {"THEIR_FLASH": "off"}).flash == "auto"


def test_options_without_effect_are_named_in_one_line(capsys):
    assert understand("--no-jinja", "-C", "ff", "--port", "5").port == 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--no-jinja (templates are Jinja); -C (start it under taskset)" in said


@pytest.mark.parametrize(
    "argv, said",
    [
        (("--tools", "all"), "--tools can't be used here: the server runs no tools"),
        (("--prot", "5"), "there is no option --prot; did you mean --port?"),
        (("--step-targets", "5"), "did you mean --step-target?"),
        (("--xyzzy",), "there is no option --xyzzy (see --help)"),
    ],
)
def test_what_can_not_be_done_is_refused_by_name_with_what_helps(capsys, argv, said):
    with pytest.raises(SystemExit):
        understand(*argv)
    assert said in capsys.readouterr().err


# The options of llama-server's --help that people's scripts have, and what is made of them.
SCRIPTS = [
    ("-m x.gguf -c 4096 -np 4 --port 8080 -ngl 99 --jinja -fa on --temp 0.7 --seed 42",
     {"ctx_size": 4096, "slots": 4, "port": 8080, "gpu_layers": 99, "flash_attn": "on", "temperature": 0.7,
      "seed": 42}),
    ("--model x.gguf --host 0.0.0.0 -t 8 -tb 16 -b 2048 -ub 512 --mlock --no-mmap --cont-batching --metrics --slots",
     {"host": "0.0.0.0", "threads": 8, "threads_batch": 16, "batch_size": 2048, "ubatch_size": 512, "mlock": True,
      "no_mmap": True, "slots": 4}),
    ("-ctk q8_0 -ctv q8_0 --n-gpu-layers all -n 512 --top-k 20 --top-p 0.8 --min-p 0 --repeat-penalty 1.05 --no-webui",
     {"cache_type_k": "q8_0", "gpu_layers": -1, "n_predict": 512, "top_k": 20, "top_p": 0.8, "min_p": 0.0,
      "repeat_penalty": 1.05}),
    ("-a gpt-4o,gpt-4 --api-key a,b --ssl-cert-file {file} --ssl-key-file {file} --timeout 600 --threads-http 8 -lv 3",
     {"alias": ("gpt-4o", "gpt-4"), "api_key": ("a", "b"), "timeout": 600.0}),
    ("--presence-penalty 1.5 --samplers top_k;temperature --dry-multiplier 0.8 --mirostat 2 --mirostat-ent 4 -s 1",
     {"presence_penalty": 1.5, "samplers": "top_k;temperature", "dry_multiplier": 0.8, "mirostat": 2,
      "mirostat_tau": 4.0, "seed": 1}),
    ("--cors-origins localhost --no-slots --cache-reuse 256 -t -1 -ngl auto --no-warmup --log-colors on -v -nocb",
     {"cors_origin": ("localhost",), "no_slots": True, "threads": 0, "gpu_layers": -1, "verbose": True}),
]  # fmt: skip


@pytest.mark.parametrize("line, expected", SCRIPTS)
def test_llama_servers_command_lines_are_understood(line, expected):
    config = options.parse(backend.Config, "", (), line.format(file=__file__).split(), {}, foreign=llamaserver.OPTIONS)
    assert {name: getattr(config, name) for name in expected} == expected


def test_llama_servers_variables_are_understood():
    environ = {"LLAMA_ARG_CTX_SIZE": "2048", "LLAMA_ARG_N_PARALLEL": "2"}
    environ.update(LLAMA_API_KEY="k", LLAMA_ARG_HOST="::1")
    config = options.parse(backend.Config, "", (), [], environ, foreign=llamaserver.OPTIONS)
    assert (config.ctx_size, config.slots, config.api_key, config.host) == (2048, 2, ("k",), "::1")


def test_a_shared_context_is_shared_out():
    def holds(line):
        return options.parse(backend.Config, "", (), line.split(), {}).slot_ctx

    assert holds("-c 4096 -np 4") == 4096 and holds("-c 4096 -np 4 --share-ctx") == 1024
    assert holds("-c 4096 -np 4 --share-ctx --kv-unified") == 4096 and holds("-c 0 -np 4 --share-ctx") == 0


def test_each_of_llama_servers_other_options_has_a_reason_and_stands_once():
    flags = [flag for each in llamaserver.OPTIONS for flag in each.flags]
    assert len(flags) == len(set(flags)) > 150
    assert all(each.why and all(flag.startswith("-") for flag in each.flags) for each in llamaserver.OPTIONS)
