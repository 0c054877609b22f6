"""The bodies of rules for objects: declared members in their order, then those whose names are not declared."""

from typing import Iterable, List, NamedTuple, Optional, Set

from core.grammar.automata import ANY_TEXT, Machine, listed, product
from core.grammar.conjunctions import Conjunction
from core.grammar.patterns import without
from core.grammar.rules import json_literal
from core.grammar.selections import Choice, Counts, selection
from core.grammar.validation import Node
from core.grammar.values import Alternatives, Body, Values


class _Member(NamedTuple):
    """A declared member: its name, the rule for its value, and whether it is required."""

    key: str
    rule: str
    needed: bool


class _Pattern(NamedTuple):
    """One of `patternProperties`: the node that has it, its text, and the machine for the names that it matches."""

    node: Node
    text: str
    machine: Machine


class Objects:
    """Writes the rules for one schema's objects."""

    def __init__(self, values: Values):
        self._values = values
        self._grammar = values.grammar
        self._reader = values.reader
        self._texts = values.texts

    def body(self, name: str, conjunction: Conjunction) -> Optional[Body]:
        """Return the body of a rule, None where no object is valid. Raises APIError 400, TooLarge."""
        forbidden = self._values.rivals.forbidden(conjunction)
        if forbidden is None:
            return None
        members = self._members(conjunction, forbidden)
        if members is None:
            return None
        extra = self._extra(name, conjunction, set(conjunction.declared()) | forbidden)
        counts = Counts(*conjunction.counts("minProperties", "maxProperties"))
        if not members and extra == "json-member" and counts == (0, None):
            return Body(self._grammar.basic("json-object"))
        colon = self._grammar.basic("json-colon")
        choices = [Choice("%s %s %s" % (json_literal(key), colon, rule), needed) for key, rule, needed in members]
        self._check_extras(name, len(members), extra, counts)
        needs = self._needs(name, members, extra, counts.low)
        inner = selection(self._grammar, name, choices, extra, counts)
        return None if inner is None else Body('"{" %s %s "}"' % (self._grammar.basic("json-space"), inner), needs)

    def _members(self, conjunction: Conjunction, forbidden: Set[str]) -> Optional[List[_Member]]:
        """Return the declared members that may be there; None where a required one may not."""
        required = set(conjunction.required())
        members: List[_Member] = []
        for key in conjunction.declared():
            alternatives = [] if key in forbidden else self._alternatives(conjunction, key)
            if alternatives:
                members.append(_Member(key, self._values.rule(alternatives), key in required))
            elif key in required:
                return None
        return members

    def _alternatives(self, conjunction: Conjunction, key: str) -> Alternatives:
        """Return what a declared member's value may be; nothing where it may not be there."""
        for node in conjunction.nodes:
            if "propertyNames" in node.schema and not self._reader.holds(key, node.at("propertyNames")):
                return []
        return self._values.conjunctions.expand(
            [each for node in conjunction.nodes for each in self._reader.member(node, key)]
        )

    def _check_extras(self, name: str, declared: int, extra: Optional[str], counts: Counts) -> None:
        low, high = counts
        if extra and low > declared + 1 and (high is None or high >= low):
            message = "more than one member without a name can't be required"
            raise self._values.refuse(name, "minProperties", message)

    def _needs(self, name: str, members: List[_Member], extra: Optional[str], low: int) -> List[str]:
        """Return the rules that no object can do without."""
        needs = [member.rule for member in members if member.needed]
        if low > len(needs):  # one of the others, at least; what stands for it has blanks in it, as no rule's name has
            others = [member.rule for member in members if not member.needed] + ([extra] if extra else [])
            needs.append(self._values.part(name, name + " one of " + " ".join(others), others))
        return needs

    # ---- members that are not declared

    def _extra(self, name: str, conjunction: Conjunction, excluded: Set[str]) -> Optional[str]:
        """Return the rule for a member that is not declared; None where there may be none."""
        patterns = [
            _Pattern(node, text, self._reader.pattern(node.at("patternProperties"), text, text))
            for node in conjunction.nodes
            for text in node.schema.get("patternProperties", ())
        ]
        rules = []
        for pattern in patterns:
            others = [each.machine for each in patterns if each is not pattern]
            nodes = [pattern.node.at("patternProperties", pattern.text)]
            nodes += _additional(each for each in conjunction.nodes if each is not pattern.node)
            rules.append(self._extra_rule(name, conjunction, pattern.machine, others, excluded, nodes))
        if conjunction.is_open():
            others = [each.machine for each in patterns]
            nodes = _additional(conjunction.nodes)
            rules.append(self._extra_rule(name, conjunction, None, others, excluded, nodes))
        found = [rule for rule in rules if rule]
        if len(found) < 2:
            return found[0] if found else None
        return self._values.part(name, self._grammar.rule(name + "-extra", " | ".join(found)), found)

    def _extra_rule(
        self, name: str, conjunction: Conjunction, machine: Optional[Machine], others: List[Machine],
        excluded: Set[str], nodes: List[Node],
    ) -> Optional[str]:  # fmt: skip
        """Return the rule for members named as `machine` (None: any) says, and not as `others` or `excluded` do."""
        alternatives = self._values.conjunctions.expand(nodes)
        if not alternatives:
            return None
        for node in conjunction.nodes:
            if "propertyNames" in node.schema:
                machine = self._named(machine or ANY_TEXT, node.at("propertyNames"))
        for other in others:
            machine = self._texts.counted(without(machine, other))
        if excluded:
            machine = self._texts.counted(product(machine or ANY_TEXT, listed(sorted(excluded)), False))
        if machine is not None and machine.empty:
            return None
        return self._member_rule(name, machine, alternatives)

    def _member_rule(self, name: str, machine: Optional[Machine], alternatives: Alternatives) -> str:
        """Return the rule for a member whose name is one of a machine's texts; None for any name."""
        basic = self._grammar.basic
        key = basic("json-string") if machine is None else self._grammar.machine(name + "-key", machine, True)
        value = self._values.rule(alternatives)
        if (key, value) == ("json-string", "json-value"):
            member = basic("json-member")
        else:
            member = self._grammar.rule(name + "-member", "%s %s %s" % (key, basic("json-colon"), value))
        return self._values.part(name, member, [value])

    def _named(self, machine: Machine, node: Node) -> Machine:
        """Return the machine for those names that a node, `propertyNames`, allows. Raises APIError 400, TooLarge."""
        found = [each for each in self._values.conjunctions.expand([node]) if "string" in each.kinds()]
        if len(found) > 1 or any(each.rivals for each in found):
            raise self._reader.refuse(node, "", "'propertyNames' with several alternatives is not supported")
        return self._texts.names(machine, found[0] if found else None)


def _additional(nodes: Iterable[Node]) -> List[Node]:
    return [node.at("additionalProperties") for node in nodes if "additionalProperties" in node.schema]
