"""The engine: llama.cpp, driven by one thread that steps all generations of a model together. In reading order:

    outcome.py       what is told, and the way it takes   generation.py    one Ask on its way to its end
    engine.py        the thread: receive, load, step      stepping.py      one step: admit, plan, evaluate
    scheduler.py     which tokens go into the next batch  admission.py     tokens and sampler, made beforehand
    running.py       what runs, and how it ends           decoding.py      one decode, and what llama.cpp refuses
    choosing.py      the next tokens, and telling them    embedding.py     the step of a model that embeds
    loading.py       swapping models                      resident.py      the model that is loaded
    siding.py        where a long prompt is evaluated     aside.py         when it is, and how it comes back
    making.py        when a siding is made, and of what
    sampler.py       biases, samplers and grammar         text.py          from bytes to text that may be shown
    thought.py       a thought, and its end where it has a budget
    draws.py         chance without a memory              likeliest.py     the likeliest tokens, without sorting
    defaults.py      what requests begin with             tally.py         counts and times
    drafting.py      guesses at the next tokens           draftmodel.py    guesses of a small model
    prompting.py     tokens of texts, gaps and pairs      tokenizing.py    long texts, in pieces
    llama/           llama.cpp as objects
    pace.py          how much of prompts a step may take  cells.py         a slot's cells as bytes
    keeping.py       a slot's cells, out and back in      statefile.py     the files of them
    threads.py       how many threads a step gets         company.py       fewer, where others want the cores
    shifting.py      room in a context that is full

Words. A slot: the place of one generation in the context (llama.cpp: a sequence). Cells: a slot's part of the key-value
cache. A row: one token in a batch. A chunk: consecutive tokens of one generation in a batch. A draft: a guess at the
next tokens. The siding: a second context, in which a long prompt is evaluated while the streams' steps pass, as a slow
train waits in a siding.

README.md says how fast it is, what it needs, and which options it has.
"""

import os

# How often OpenMP's threads look for the others before they sleep; the library reads it when llama_cpp loads it. By
# default, GNU's spin so long that they starve each other where another process takes a core; with a siding, whose
# threads count, too, they look 100 times, which is too little: "active" makes it 1,000. It would let LLVM's spin for
# ever, but for KMP_BLOCKTIME, in milliseconds. README.md has the figures.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "active"
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("KMP_BLOCKTIME", "200")
# No huge pages for numpy's large arrays, into which cells are copied: the first use of such pages may take half a
# second, in which all streams stand still. numpy reads it when it is loaded.
os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")
