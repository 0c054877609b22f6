"""One frozen dataclass describes a program's settings; from it, this module makes the command line.

Every field made with setting() becomes an option `--field-name`, an environment variable `COMEAPI_FIELD_NAME`
and a line of `--help`, all with the same default, check and text. The command line wins over the environment, which
wins over the default. Positional arguments are a second way to write some of the options.
"""

import argparse
import dataclasses
import os
import re
import sys
from typing import (
    Any,
    Callable,
    ClassVar,
    Dict,
    Iterable,
    List,
    Mapping,
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
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def setting(default: Any, help: str, group: str, **how: Any) -> Any:
    """Return a dataclass field that a command line can show: its default, its help text and its group of options.

    `how` may hold `flags` (further names), `check` (text → value, raising ValueError), `secret`, `many`, `metavar`.
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


def parse(
    kind: Type[C],
    documentation: str,
    positional: Sequence[str] = (),
    argv: Optional[Sequence[str]] = None,
    environ: Optional[Mapping[str, str]] = None,
    program: Optional[str] = None,
) -> C:
    """Return a `kind` filled from the command line and the environment.

    `documentation` is the program's docstring: --help begins with its first two paragraphs, what it is and examples.
    `positional` names the fields that may also be given by position, in order; `program` is the name to show. Ends
    the program with one line on stderr and status 2 where an argument is wrong.
    """
    environ = os.environ if environ is None else environ
    parser = _Parser(
        prog=program,
        description="\n\n".join(documentation.split("\n\n")[:2]),
        usage="%(prog)s [options] " + " ".join("[%s]" % name for name in positional),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Each option also reads an environment variable: --%s reads %s."
        % (_flag(positional[-1])[2:] if positional else "port", _variable(positional[-1] if positional else "port")),
        allow_abbrev=False,
    )
    fields = {each.name: each for each in dataclasses.fields(kind)}
    _add_positional(parser, [fields[name] for name in positional])
    _add_options(parser, fields.values())
    given = vars(parser.parse_args(argv))
    values = _from_environment(parser, fields.values(), environ)
    values.update(given)
    return kind(**{name: _finish(parser, fields[name], value) for name, value in values.items()})


def fail(message: str, status: int = 1) -> NoReturn:
    """End the program with one line on stderr."""
    sys.stderr.write("%s: error: %s\n" % (os.path.basename(sys.argv[0]), message))
    sys.stderr.flush()
    sys.exit(status)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, not under a page of usage."""
        fail("%s (see --help)" % message, 2)


def _add_positional(parser: argparse.ArgumentParser, fields: Sequence[Any]) -> None:
    group = parser.add_argument_group("by position")
    for each in fields:
        group.add_argument(
            each.name, nargs="?", type=_checked(each), default=argparse.SUPPRESS, help=_flag(each.name) + " below"
        )


def _add_options(parser: argparse.ArgumentParser, fields: Iterable[Any]) -> None:
    groups: Dict[str, Any] = {}
    for each in fields:
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
        groups[meta["group"]].add_argument(_flag(each.name), *meta.get("flags", ()), **how)


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

    def convert(text: str) -> Any:
        if text is argparse.SUPPRESS:  # argparse converts the default of a positional argument that is left out
            return text
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error))

    return convert


def _from_environment(
    parser: argparse.ArgumentParser, fields: Iterable[Any], environ: Mapping[str, str]
) -> Dict[str, Any]:
    values = {}
    for each in fields:
        text = environ.get(_variable(each.name))
        optional = not isinstance(each.default, str) or each.metadata.get("secret")
        if text is None or (text == "" and optional):  # compose files set what they leave out
            continue
        try:
            values[each.name] = _from_text(each, text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            parser.error("%s: %s" % (_variable(each.name), error))
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
    for name in names:
        value = getattr(config, name)
        if value is True:
            arguments.append(_flag(name))
        elif value is not False:  # a default too: the other program's environment may say otherwise
            arguments += ["%s=%s" % (_flag(name), each) for each in (value if isinstance(value, tuple) else [value])]
    return tuple(arguments)
