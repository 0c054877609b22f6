"""What the project uses of llama.cpp, as objects. Only these files import llama_cpp. In reading order:

    build.py         what the library was built for
    native.py        the library itself: its start, its log
    model.py         Model: one GGUF file's weights and vocabulary      (llama_model, llama_vocab)
    batch.py         Run, Batch: rows for one decode                    (llama_batch)
    parameters.py    what the settings say of a context                 (llama_context_params)
    context.py       Context: the slots' cells, and one decode          (llama_context, llama_memory)
    samplers.py      the samplers that a request asks for               (llama_sampler)
    chain.py         Chain: one request's samplers in a row             (llama_sampler_chain)

Who may touch what, from which thread:

    Model      its vocabulary: any thread; `readers` keeps it from being freed meanwhile. The rest: the engine's thread
    Context    one thread at a time. The engine's own: the engine's thread; the siding's: the siding's thread in its
               turns, and the engine's thread while that halts or has ended. After settle(), several threads may read
               the last decode's logits at once, until the next decode
    Chain      one thread at a time. Any thread makes it; then the engine's thread uses it, or, while the engine's
               thread waits for all of them, one thread of its pool

What llama.cpp refuses becomes an APIError; what would end the process (an assertion in native code) is checked before
the call. Grammars never reach it: core/grammar reads and follows them, and sampler.py asks it.
"""
