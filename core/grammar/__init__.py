"""Grammars: a JSON schema, a pattern or GBNF goes in; which tokens may come next comes out.

From a schema to GBNF, llama.cpp's grammar language. In reading order, each file stands on those above it:

    automata.py      machines: deterministic automata over characters
    digits.py        machines for numbers within bounds
    patterns.py      machines for regular expressions and formats
    rules.py         GBNF rules under construction
    validation.py    a schema as it was given: its nodes, references, mistakes; whether a value is valid
    conjunctions.py  what a value may be, with references and the keywords of logic resolved
    texts.py         which texts a string may have
    rivals.py        what a value must not be, and when that is sure
    values.py        the rules for a schema's values: named at once, written later
    selections.py    some of a list, in its order
    free.py          free text up to a trigger, then a grammar
    strings.py, numbers.py, arrays.py, objects.py    the bodies of rules, by type
    schema.py        all of it together; what a grammar promises, and where it is narrower than the schema

From GBNF to tokens:

    elements.py      what a grammar is made of, once it has been read
    gbnf.py          reads GBNF, or refuses it
    stacks.py        follows a grammar through one answer
    masks.py         which of a whole vocabulary's tokens may come next

    kept.py          grammars are kept for the next request that brings the same

Words:

    machine       a deterministic automaton: the texts that it accepts, seen state by state
    node          a schema within the whole one, and its place there
    conjunction   nodes that must all hold; a value's alternatives are a list of these
    rival         a schema that a value must not satisfy: of `not`, or another branch of `oneOf`
    apart         two schemas are apart if it is sure that no value satisfies both
    need          a rule that a value can't do without; a value that needs itself would never end
    step          a unit of work in making a grammar; they are counted, so that no schema takes longer than a second
    stack         one way in which an answer may go on; an answer mostly has several
    mask          for each token of the vocabulary, whether it may come next
"""
