"""Where a chat template runs: jinja2's immutable sandbox, with bounds.

    Program    a template's source, compiled; run() renders it within the bounds

A template reaches only what it is given, and changes nothing of it; lists that it makes itself may grow. There are
limits on how far its ranges may count and its lists may grow, how large its sums and products may be, and how much it
may write. This stops mistakes and simple attacks; a file from someone you don't trust can still waste time and memory.
"""

import json
import threading
import types
from typing import Any, Dict, List, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_LARGEST = 2**24  # characters of a prompt, or of any value in a template; a context of a million tokens has a quarter
_MOST_ROUNDS = 100000  # that all ranges of one rendering have together, and items that it adds to lists


class Program:
    """A compiled template; it may be run by many threads at once. Raises what jinja2 raises for a broken one."""

    def __init__(self, source: str):
        self._template = _ENVIRONMENT.from_string(source)
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))

    def run(self, given: Dict[str, Any]) -> str:
        """Return what the template writes with these variables. Raises whatever a program may raise."""
        _LEFT.rounds = _MOST_ROUNDS
        fixed = {name: Given(value) if isinstance(value, list) else value for name, value in given.items()}
        pieces, size = [], 0
        for piece in self._template.generate(range=_limited_range, raise_exception=_raise_exception, **fixed):
            size += len(piece)
            _check_size(size)
            pieces.append(piece)
        return "".join(pieces)


class Given(List[Any]):
    """A list that a template is given: it must not grow."""


_LEFT = threading.local()  # what is left of _MOST_ROUNDS for the rendering that runs in a thread
_GROWING = ("append", "pop")  # methods of lists that templates use


def _spend(rounds: int) -> None:
    """Count rounds of ranges, and items that are added to lists, of the rendering that runs in this thread."""
    _LEFT.rounds -= rounds
    if _LEFT.rounds < 0:
        raise OverflowError("the template counts further than %d" % _MOST_ROUNDS)


def _limited_range(*bounds: int) -> range:
    """The function `range` as templates have it: all numbers that it gives to one rendering are counted."""
    numbers = range(*bounds)
    _spend(len(numbers))
    return numbers


class _Missing(jinja2.Undefined):
    """What is not there: nothing, too, where a text is added to it. Some templates count on that, as in llama.cpp."""

    def __add__(self, other: Any) -> Any:
        return other if isinstance(other, str) else super().__add__(other)

    def __radd__(self, other: Any) -> Any:
        return other if isinstance(other, str) else super().__radd__(other)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, in which no sum, product or power may be larger than a prompt may be."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Work out an intercepted operation, unless its result would be too large."""
        _check_size(_size_of(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may have an attribute: of its own lists those, too, that change them."""
        return (type(obj) is list and attr in _GROWING) or super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something for a template; what makes a list grow is counted."""
        if isinstance(getattr(obj, "__self__", None), list):
            _spend(1)
        return super().call(context, obj, *args, **kwargs)


def _size_of(operator: str, left: Any, right: Any) -> int:
    """Return about how large the result of an operation is, in what _size() counts."""
    if operator == "+":
        return _size(left) + _size(right)
    if operator == "**":
        return _size(left) * abs(right) if isinstance(right, int) else 0
    if isinstance(left, int) and isinstance(right, int):
        return _size(left) + _size(right)
    return max(
        _size(left) * right if isinstance(right, int) else 0, left * _size(right) if isinstance(left, int) else 0
    )


def _size(value: Any) -> int:
    """Return a text's characters or a list's items; a number's bits count as more, since products of long ones last."""
    if isinstance(value, int):
        return value.bit_length() << 12
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _check_size(size: int) -> None:
    if size > _LARGEST:
        raise OverflowError("the template makes more than %d characters" % _LARGEST)


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}, with which templates mark answers for training: here only its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> List[jinja2.nodes.Node]:
        """Return the body's nodes (jinja2 calls this at the tag)."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson` as templates expect it: jinja2's own escapes HTML. What a filter yields is a list."""
    value = list(value) if isinstance(value, types.GeneratorType) else value
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> _Sandbox:
    extensions = [_Generation, "jinja2.ext.loopcontrols"]
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, undefined=_Missing, extensions=extensions)
    environment.filters["tojson"] = to_json
    environment.filters["safe"] = str  # jinja2's gives Markup, which escapes the text that is added to it
    return environment


_ENVIRONMENT = _environment()
