"""Whole vocabularies under a grammar: the same tokens as llama.cpp's grammars take, and in bounded time."""

import ctypes
import random
import time

import llama_cpp
import numpy
import pytest
from engines import DEMO
from schemas import random_schema

from core.engine.llama.model import Model
from core.grammar import gbnf, masks
from core.grammar.schema import json_grammar
from core.grammar.stacks import Stacks, decoded
from core.settings import EngineSettings


@pytest.fixture(scope="module")
def model():
    model = Model(DEMO, EngineSettings(), lambda share: True)
    yield model
    model.close()


def by_llama(model, grammar):
    """Return the tokens that llama.cpp's grammar takes."""
    data = (llama_cpp.llama_token_data * model.vocabulary)(*[(token, 0.0, 0.0) for token in range(model.vocabulary)])
    native = llama_cpp.llama_token_data_array(data=data, size=len(data), selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(grammar, ctypes.byref(native))
    return {each.id for each in data if each.logit == 0}


def valid(model, tokens):
    """Leave out those that are no UTF-8: llama.cpp lets some through."""
    return {token for token in tokens if model.ends(token) or decoded(model.piece(token, True))}


def is_whole(model, token):
    """Whether a token's text ends with a whole character: llama.cpp is too strict with a part of one before [^…]."""
    return model.ends(token) or not decoded(model.piece(token, True))[1]


HAND_WRITTEN = [
    "root ::= [^a-z] [^ぁ-ん]{1,5}",
    'root ::= "日本" [ぁ-ん]* "é"?',
    'root ::= ([a-z]+ " "?)+',
    'root ::= "a"{2,5} ("b" | "bc"{1,3}){0,4} "c"* "."',
    '''root ::= "" | "a" root "b"?''',
    'root ::= "ab"{3} "cd"{2}{2}',
    'root ::= <[300]> "a" [b-d]+ | [a-c] "z"',
    'root ::= !<[300]> ( <[301]> | "q" )*',
    'root ::= [a\\-z\\]] [--9] "\\u3042" "\\x41"*',
    'root ::= "a"{0} "b"{0,0} "c"{3,2500}',
]


@pytest.mark.parametrize(
    "grammar", HAND_WRITTEN + [json_grammar(random_schema(random.Random(seed), 3)) for seed in range(40)]
)
def test_a_grammar_takes_the_tokens_that_llama_cpp_takes(model, grammar):
    rng = random.Random(1)
    stacks = Stacks(gbnf.read(grammar), {300: 300, 301: 301})
    native = llama_cpp.llama_sampler_init_grammar(model.vocab, grammar.encode("utf-8"), b"root")
    assert native
    for _ in range(25):
        takes = set(numpy.flatnonzero(masks.allowed(stacks, model.texts())).tolist())
        if not stacks.state.partial:
            theirs = valid(model, by_llama(model, native))
            assert theirs <= takes and not any(is_whole(model, token) for token in takes - theirs)
        for token in rng.sample(range(model.vocabulary), 20):  # one by one it is the same
            if not model.ends(token):
                assert (stacks.after(token, model.piece(token, True)) is not None) == (token in takes)
        going_on = sorted(token for token in takes if not model.ends(token))
        if not going_on:
            break
        token = rng.choice(going_on)
        stacks.move(stacks.after(token, model.piece(token, True)))
        llama_cpp.llama_sampler_accept(native, token)
    llama_cpp.llama_sampler_free(native)


ALTERNATIVES = " | ".join('"%d"' % number for number in range(3000))


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= ([a-z]+ " "?)+',
        'root ::= r\nr ::= [ -~] r "b" | [ -~] r "c" | "\\n"',
        'root ::= (" " | " ") root | "b"',
        "root ::= big big big big big big\nbig ::= " + " | ".join(["[a-z]"] * 100),
        "root ::= " + " | ".join('"a" root "%d"' % number for number in range(60)) + ' | "x"',
        "root ::= ([a-z]?){300}",
        "root ::= " + " | ".join("[a-z] big" for _ in range(3000)) + "\nbig ::= " + ALTERNATIVES,
    ],
)
def test_an_ambiguous_grammar_keeps_nobody_waiting(model, grammar):
    stacks = Stacks(gbnf.read(grammar), {})
    for text in (b"a", b"a", b"abcdefghijklmnop"):
        started = time.process_time()
        masks.allowed(stacks, model.texts())
        stacks.move(stacks.after(-1, text) or stacks.state)
        assert time.process_time() - started < 5  # 0.5 at most on a usual machine
