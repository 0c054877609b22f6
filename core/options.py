"""One frozen dataclass describes a program's settings; from it, this module makes the command line.

Every field made with setting() becomes an option `--field-name`, an environment variable `COMEAPI_FIELD_NAME`
and a line of `--help`, all with the same default, check and text. The command line wins over the environment, which
wins over the default. Positional arguments are a second way to write some of the options.

A program may also understand another server's command lines: a setting then has that server's names for it (`flags`,
`variables`), and a list of Foreign says what becomes of the other server's remaining options.
"""

import argparse
import dataclasses
import difflib
import os
import re
import sys
from typing import (
    Any,
    Callable,
    ClassVar,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    NoReturn,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)


class _Dataclass(Protocol):
    """What type checkers know a dataclass by."""

    __dataclass_fields__: "ClassVar[Dict[str, dataclasses.Field[Any]]]"


C = TypeVar("C", bound=_Dataclass)
PREFIX = "COMEAPI_"
_FIRST_GROUPS = ("plan", "backends", "model", "network", "access")  # of --help; "other" is the last one
_TRUE, _FALSE = ("1", "true", "yes", "on", "enabled"), ("0", "false", "no", "off", "disabled", "")


class Foreign(NamedTuple):
    """An option of another server that is no setting here: its names, how many values it takes, and why.

    One that `refuses` ends the program with its reason; any other one has no effect, and is named at start.
    """

    flags: Tuple[str, ...]
    values: int
    why: str
    refuses: bool


def setting(default: Any, help: str, group: str, **how: Any) -> Any:
    """Return a dataclass field that a command line can show: its default, its help text and its group of options.

    `how` may hold `flags` (further names), `check` (text → value, raising ValueError), `secret`, `many`, `metavar`;
    `bare`, the text that the option stands for without a value; `off`, names that turn a flag off; `commas`, that one
    value may hold several, with commas between; and `variables`, another server's environment variables for it.
    """
    return dataclasses.field(default=default, metadata=dict(how, help=help, group=group))


def between(low: float, high: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """Return a check that a text is a number of `kind` from `low` to `high`. The check raises ValueError."""

    def check(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:  # NaN is not between anything
            what = "a whole number" if kind is int else "a number"
            raise ValueError("%r is not %s from %g to %g" % (text, what, low, high))
        return value

    return check


def whole_or(words: Mapping[str, int], low: int, high: int) -> Callable[[str], int]:
    """Return a check like between()'s that also takes some words, each for a number. The check raises ValueError."""
    check = between(low, high)
    return lambda text: words[text.lower()] if text.lower() in words else check(text)


def parse(
    kind: Type[C],
    documentation: str,
    positional: Sequence[str] = (),
    argv: Optional[Sequence[str]] = None,
    environ: Optional[Mapping[str, str]] = None,
    program: Optional[str] = None,
    foreign: Optional[Sequence[Foreign]] = None,
) -> C:
    """Return a `kind` filled from the command line and the environment.

    `documentation` is the program's docstring: --help begins with its first two paragraphs, what it is and examples.
    `positional` names the fields that may also be given by position, in order; `program` is the name to show. With
    `foreign`, another server's options and variables are understood. Ends the program with one line on stderr and
    status 2 where an argument is wrong.
    """
    parser, without_effect = _parser(kind, documentation, positional, program, foreign)
    values = _said(parser, kind, argv, environ, foreign is not None)
    if without_effect:
        sys.stderr.write("%s: without effect here: %s\n" % (parser.prog, "; ".join(without_effect)))
    fields = {each.name: each for each in dataclasses.fields(kind)}
    return kind(**{name: _finish(parser, fields[name], value) for name, value in values.items()})


def named(
    kind: Type[C],
    positional: Sequence[str] = (),
    argv: Optional[Sequence[str]] = None,
    environ: Optional[Mapping[str, str]] = None,
) -> FrozenSet[str]:
    """Return the names of the fields that the command line or the environment sets, be it to the default."""
    parser, _ = _parser(kind, "", positional, None, None)
    return frozenset(_said(parser, kind, argv, environ, False))


def _parser(
    kind: Type[C],
    documentation: str,
    positional: Sequence[str],
    program: Optional[str],
    foreign: Optional[Sequence[Foreign]],
) -> Tuple["_Parser", List[str]]:
    """Return a parser of all options, and a list that parsing fills: another server's without effect, and why."""
    parser = _Parser(
        prog=program,
        description="\n\n".join(documentation.split("\n\n")[:2]),
        usage=" ".join(["%(prog)s [options]", *("[%s]" % name for name in positional)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Each option also reads an environment variable: --%s reads %s."
        % (_flag(positional[-1])[2:] if positional else "port", _variable(positional[-1] if positional else "port")),
        allow_abbrev=False,
    )
    fields = {each.name: each for each in dataclasses.fields(kind)}
    _add_positional(parser, [fields[name] for name in positional])
    _add_options(parser, fields.values())
    return parser, _add_foreign(parser, foreign or ())


def _said(
    parser: "_Parser",
    kind: Type[C],
    argv: Optional[Sequence[str]],
    environ: Optional[Mapping[str, str]],
    foreign: bool,
) -> Dict[str, Any]:
    """Return what the environment and the command line say, which wins, by the names of the fields."""
    given = vars(parser.parse([_hyphened(each) for each in (sys.argv[1:] if argv is None else argv)]))
    values = _from_environment(
        parser, dataclasses.fields(kind), os.environ if environ is None else environ, foreign
    )
    return dict(values, **given)


def fail(message: str, status: int = 1) -> NoReturn:
    """End the program with one line on stderr."""
    sys.stderr.write("%s: error: %s\n" % (os.path.basename(sys.argv[0]), message))
    sys.stderr.flush()
    sys.exit(status)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, not under a page of usage."""
        fail("%s (see --help)" % message, 2)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return what the arguments say; an unknown option is told with those that are spelt much like it."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            named = next((each for each in unknown if each.startswith("-")), "").partition("=")[0]
            like = difflib.get_close_matches(named, self._option_string_actions, 3, 0.75)
            hint = "; did you mean %s?" % " or ".join(like) if like else ""
            self.error("there is no option %s%s" % (named, hint) if named else "one argument too many: %s" % unknown[0])
        return known


def _hyphened(argument: str) -> str:
    """Return an argument with the hyphens of an option that is spelt with underscores."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


class _Negate(argparse.Action):
    """Turns a flag off."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Optional[str] = None) -> None:
        setattr(namespace, self.dest, False)


def _add_foreign(parser: argparse.ArgumentParser, foreign: Sequence[Foreign]) -> List[str]:
    """Add another server's options. Returns a list that parsing fills: which stand without effect, and why."""
    without_effect: List[str] = []

    class Meet(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Optional[str] = None) -> None:
            option = options[self.option_strings[0]]
            if option.refuses:
                parser.error("%s can't be used here: %s" % (option_string, option.why))
            without_effect.append("%s (%s)" % (option_string, option.why))

    options = {each.flags[0]: each for each in foreign}
    for each in foreign:
        parser.add_argument(
            *each.flags, nargs=each.values, action=Meet, dest="foreign", default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )  # fmt: skip
    return without_effect


def _add_positional(parser: argparse.ArgumentParser, fields: Sequence[Any]) -> None:
    group = parser.add_argument_group("by position")
    for each in fields:
        group.add_argument(
            each.name, nargs="?", type=_checked(each), default=argparse.SUPPRESS, help=_flag(each.name) + " below"
        )


def _rank(field: Any) -> int:
    """Return where a field's group stands in --help."""
    group = field.metadata["group"]
    return _FIRST_GROUPS.index(group) if group in _FIRST_GROUPS else len(_FIRST_GROUPS) + (group == "other")


def _add_options(parser: argparse.ArgumentParser, fields: Iterable[Any]) -> None:
    groups: Dict[str, Any] = {}
    for each in sorted(fields, key=_rank):
        meta = each.metadata
        if meta["group"] not in groups:
            groups[meta["group"]] = parser.add_argument_group(meta["group"])
        how: Dict[str, Any] = {"dest": each.name, "default": argparse.SUPPRESS, "help": _help(each)}
        if isinstance(each.default, bool):
            how["action"] = "store_true"
        else:
            how.update(type=_checked(each), metavar=meta.get("metavar") or _metavar(each))
            if meta.get("many"):
                how["action"] = "append"
            if "bare" in meta:
                how.update(nargs="?", const=_checked(each)(meta["bare"]))
        groups[meta["group"]].add_argument(_flag(each.name), *meta.get("flags", ()), **how)
        if meta.get("off"):
            off = {"dest": each.name, "nargs": 0, "default": argparse.SUPPRESS, "help": "the opposite"}
            groups[meta["group"]].add_argument(*meta["off"], action=_Negate, **off)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _metavar(each: Any) -> str:
    return "N" if isinstance(each.default, (int, float)) else each.name.split("_")[-1].upper()


def _help(each: Any) -> str:
    """Return an option's help text with its default, where there is one to show."""
    text = each.metadata["help"].replace("%", "%%")
    if each.default in (None, "", ()) or isinstance(each.default, bool) or each.metadata.get("secret"):
        return text
    shown = ", ".join(each.default) if isinstance(each.default, tuple) else each.default
    return "%s (default %s)" % (text, str(shown).replace("%", "%%"))


def _checked(each: Any) -> Any:
    """Return argparse's `type` for a field: its check, with its message kept."""
    check = each.metadata.get("check", str)
    commas = each.metadata.get("commas")

    def convert(text: str) -> Any:
        if text is argparse.SUPPRESS:  # argparse converts the default of a positional argument that is left out
            return text
        try:
            return ",".join(check(part) for part in text.split(",") if part) if commas else check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error))

    return convert


def _from_environment(
    parser: argparse.ArgumentParser, fields: Iterable[Any], environ: Mapping[str, str], foreign: bool
) -> Dict[str, Any]:
    """Return what the environment says. Another server's variables count where ours say nothing."""
    values = {}
    for each in fields:
        names = (_variable(each.name),) + (tuple(each.metadata.get("variables", ())) if foreign else ())
        name = next((name for name in names if name in environ), names[0])
        text = environ.get(name)
        optional = not isinstance(each.default, str) or each.metadata.get("secret")
        if text is None or (text == "" and optional):  # compose files set what they leave out
            continue
        try:
            values[each.name] = _from_text(each, text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            parser.error("%s: %s" % (name, error))
    return values


def _from_text(each: Any, text: str) -> Any:
    if isinstance(each.default, bool):
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError("%r is neither true nor false" % text)
        return text.lower() in _TRUE
    if each.metadata.get("many"):
        return [_checked(each)(part) for part in re.split(r"[,\s]+", text.strip()) if part]
    return _checked(each)(text)


def _finish(parser: argparse.ArgumentParser, each: Any, value: Any) -> Any:
    """Turn a repeated option's values into a tuple, reading secrets from @FILEs; a single one takes a file's first."""
    many = each.metadata.get("many")
    if each.metadata.get("commas"):
        value = [part for text in value for part in text.split(",") if part]
    if each.metadata.get("secret"):
        value = [key for text in (value if many else [value]) for key in _secrets(parser, text)]
        return tuple(value) if many else value[0]
    return tuple(value) if many else value


def _secrets(parser: argparse.ArgumentParser, text: str) -> List[str]:
    try:
        return keys_in_file(text[1:]) if text.startswith("@") else [text]
    except ValueError as error:
        parser.error(str(error))
        raise  # error() has ended the program


def keys_in_file(path: str) -> List[str]:
    """Return the keys in a file, one a line; # begins a comment. Raises ValueError where there is none."""
    try:
        with open(path, encoding="utf-8-sig") as lines:  # some editors begin a file with a byte order mark
            keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    except (OSError, ValueError) as error:
        raise ValueError("the key file %s can't be read: %s" % (path, error))
    if not keys:
        raise ValueError("the key file %s holds no key" % path)
    return keys


def as_arguments(config: Any, names: Sequence[str]) -> Tuple[str, ...]:
    """Return the fields of `config` with these names as command-line options, to start another program with."""
    arguments: List[str] = []
    off = {each.name: each.metadata.get("off", ()) for each in dataclasses.fields(config)}
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool):
            arguments += [_flag(name)] if value else off[name][:1]
        elif value is not None:  # a default too: the other program's environment may say otherwise
            arguments += ["%s=%s" % (_flag(name), each) for each in (value if isinstance(value, tuple) else [value])]
    return tuple(arguments)
