"""What a schema costs before its answer can begin: the first time, and the second, when its grammar is kept.

    python tests/load_schemas.py          both figures below, as lines of JSON; some seconds, on one core
    python tests/load_schemas.py schema   response_format: one schema of 500 properties
    python tests/load_schemas.py tools    tool_choice "required": 30 tools that have 500 properties together

The whole way is measured: from the schema to the grammar's text, and from there to the grammar that the engine follows.
Each round brings a schema that is new to the process, then the same one again. Figures are medians of the rounds.
"""

import json
import os
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from core.chat.families import HERMES  # noqa: E402
from core.chat.guided import Thinking, answer_grammar  # noqa: E402
from core.chat.syntaxes import Style  # noqa: E402
from core.chat.tools import Tools  # noqa: E402
from core.grammar import gbnf  # noqa: E402
from core.grammar.kept import exact_key  # noqa: E402
from core.grammar.schema import json_grammar  # noqa: E402

PROPERTIES = 500
TOOLS = 30
ROUNDS = 9


def property_schema(number, salt):
    """One of the kinds that the tools of agents have; `salt` makes it another one than in other rounds."""
    about = {"description": "What the tool is to use as number %d, in round %d." % (number, salt)}
    place = {"path": {"type": "string"}, "line": {"type": "integer", "minimum": 1}, "whole": {"type": "boolean"}}
    kinds = [
        {"type": "string"},
        {"type": "integer", "minimum": 0, "maximum": 100 + number},
        {"type": "string", "enum": ["%s_%d" % (word, number) for word in ("read", "write", "append", "delete")]},
        {"type": "string", "maxLength": 200},
        {"type": "object", "properties": place, "required": ["path"], "additionalProperties": False},
        {"type": "boolean"},
        {"type": "array", "items": {"type": "string"}, "maxItems": 20},
        {"type": "string", "pattern": "^[a-z]{2,8}-%d[0-9]{1,4}$" % (1000 * salt + number)},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": ["string", "null"], "format": "date-time"},
    ]
    return dict(kinds[number % len(kinds)], **about)


def object_schema(numbers, salt):
    """A tool's parameters: half of them required."""
    properties = {"field_%d" % number: property_schema(number, salt) for number in numbers}
    return {"type": "object", "properties": properties, "required": list(properties)[::2]}


def schema_of_500(salt=0):
    return object_schema(range(PROPERTIES), salt)


def tools_of_500(salt=0):
    """30 tools, as read_tools() gives them."""
    parameters = [object_schema(range(number, PROPERTIES, TOOLS), salt) for number in range(TOOLS)]
    functions = [
        {"name": "tool_%d" % number, "description": "", "parameters": each} for number, each in enumerate(parameters)
    ]
    return Tools([{"type": "function", "function": function} for function in functions], "required")


WAYS = {
    "schema": (schema_of_500, json_grammar),
    "tools": (tools_of_500, lambda tools: answer_grammar(Style(HERMES), tools, None, Thinking.NONE)),
}


def milliseconds(action):
    """What an action returns, and how long it took."""
    started = time.perf_counter()
    result = action()
    return result, (time.perf_counter() - started) * 1e3


def measure(which):
    """The figures of one way."""
    make, convert = WAYS[which]
    rounds = []
    for salt in range(1, ROUNDS + 1):
        wanted = make(salt)
        text, converting = milliseconds(lambda: convert(wanted))
        _, reading = milliseconds(lambda: gbnf.read(text))
        again = make(salt)  # as the next request brings it: equal, but another object
        _, second = milliseconds(lambda: gbnf.read(convert(again)))
        plain = wanted if which == "schema" else wanted.tools
        key, keying = milliseconds(lambda: exact_key(plain))
        rounds.append((converting + reading, converting, reading, second, keying))
    first, converting, reading, second, keying = map(statistics.median, zip(*rounds))
    return {
        "schema_kilobytes": len(key) / 1e3, "grammar_kilobytes": len(text) / 1e3, "first_ms": first,
        "of_it_converting_ms": converting, "of_it_reading_ms": reading, "second_ms": second,
        "of_it_key_ms": keying, "times_faster": first / second,
    }  # fmt: skip


def main():
    for which in sys.argv[1:] or WAYS:
        figures = {name: round(value, 3) for name, value in measure(which).items()}
        print(json.dumps(dict({"what": which, "properties": PROPERTIES}, **figures)), flush=True)


if __name__ == "__main__":
    main()
