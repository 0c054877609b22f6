"""Free text up to a trigger, then a grammar: what llama.cpp calls a lazy grammar, as rules like any others.

    Free ── text     free text, in which each trigger leads to a rule of its own
         ── start    the same at its beginning, where some words are triggers that are none further on
    holds_no         a machine for the texts without a certain one in them

Free text is an automaton (Aho and Corasick, 1975): a state for each beginning of a trigger that may have come. Its
states become rules with one way on for each character. So a token of free text costs what a few steps of a grammar
cost, some microseconds, and an answer can go on from any place: it stands where its tokens have led.
"""

from typing import Dict, List, Mapping, Tuple

from core.grammar.automata import Machine, all_but, explore, union
from core.grammar.rules import Rules, characters

_SPACE = " \t\r\n"  # may stand before a word that is a trigger at the beginning only


class Free:
    """Rules for free text. `triggers` are texts, each with the rule or body that the answer goes on with after it.

    With `ends`, the answer may end in free text.
    """

    def __init__(self, grammar: Rules, name: str, triggers: Mapping[str, str], ends: bool):
        self._grammar = grammar
        self._name = name
        self._triggers = triggers
        self._ends = ends
        self._rules: Dict[str, str] = {}  # by the beginning of a trigger that has come

    def text(self, come: str = "") -> str:
        """Return the rule for free text, of which `come`, the beginning of a trigger, has come already."""
        if come not in self._rules:
            self._rules[come] = self._grammar.reserve(self._name)
            ways = {char: self._way(come + char) for char in _chars(self._triggers)}
            self._define(self._rules[come], ways)
        return self._rules[come]

    def start(self, words: Mapping[str, str]) -> str:
        """Return the rule for free text at whose beginning, after white space, words are triggers, too."""
        return self._start(words, "") if words else self.text()

    def _start(self, words: Mapping[str, str], come: str) -> str:
        rule = self._grammar.reserve(self._name + "-start")
        ways = {char: self._way(come + char) for char in _chars(self._triggers) + _chars(words)}
        ways.update((char, rule) for char in ("" if come else _SPACE))
        for char in _chars(words):
            if come + char in words:
                ways[char] = words[come + char]
            elif any(word.startswith(come + char) for word in words):
                ways[char] = self._start(words, come + char)
        self._define(rule, ways)
        return rule

    def _way(self, come: str) -> str:
        """Return what follows free text that ends like this: a trigger's rule, or free text."""
        for at in range(len(come)):
            if come[at:] in self._triggers:
                return self._triggers[come[at:]]
        for at in range(len(come)):
            if any(trigger.startswith(come[at:]) for trigger in self._triggers):
                return self.text(come[at:])
        return self.text()

    def _define(self, rule: str, ways: Mapping[str, str]) -> None:
        """Write a state's rule: the ways on of some characters, and free text after all others."""
        free = self.text()
        by_way: Dict[str, List[str]] = {}
        for char, way in ways.items():
            if way != free:
                by_way.setdefault(way, []).append(char)
        special = union((ord(char), ord(char)) for chars in by_way.values() for char in chars)
        bodies = ["%s %s" % (characters(all_but(special)), free)]
        for way, chars in by_way.items():
            bodies.append(("%s %s" % (characters(union((ord(char), ord(char)) for char in chars)), way)).strip())
        self._grammar.define(rule, " | ".join(bodies + (['""'] if self._ends else [])))


def _chars(words: Mapping[str, str]) -> str:
    return "".join(sorted({char for word in words for char in word}))


def holds_no(text: str) -> Machine:
    """Return the machine for all texts that do not hold a certain one, and may be followed by it: its first place in
    the two together is then at the end of the first."""
    chars = sorted(set(text))
    others = all_but(union((ord(char), ord(char)) for char in chars))

    def after(come: str) -> str:
        return next(come[at:] for at in range(len(come) + 1) if text.startswith(come[at:]))

    def edges(come: str) -> List[Tuple[int, int, str]]:
        ways = [(ord(char), ord(char), after(come + char)) for char in chars if after(come + char) != text]
        return sorted(ways + [(first, last, "") for first, last in others])

    return explore("", edges, lambda come: not _early(come, text))


def _early(come: str, text: str) -> bool:
    """Whether `text` would be complete before its end, if it came after its beginning `come`."""
    return (come + text).find(text) < len(come)
