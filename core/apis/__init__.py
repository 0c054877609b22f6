"""The APIs that a backend speaks. Each is one file: its dialects (how a request asks and is answered) and its routes.

    endpoint.py      the loop that drives every dialect    dialect.py     what a dialect is
    host.py          what a dialect may ask of the server  scales.py      how much of each LoRA adapter a request wants
    prompts.py       prompts in all their shapes           extras.py      what is asked for beside the answer
    measuring.py     a backend's metrics                   README.md      every field of each API
    openapi.py       the routes, for GET /openapi.json     openapi_{requests,answers,events}.py   their schemas
    generate.py      ComeAPI's own                         openai.py, openai_shapes.py
    llamacpp.py      llama.cpp's server's                  anthropic.py   ollama.py
    embeddings.py    OpenAI's and llama.cpp's              reranking.py   Jina's, Cohere's and Hugging Face's
    infill.py        llama.cpp's, for editors              slots.py       llama.cpp's, to keep what slots hold
    lora.py          llama.cpp's, for LoRA adapters        ollama_embeddings.py   Ollama's embeddings
    responses.py     OpenAI's Responses API                response_items.py, response_asks.py   from bodies to asks
    response_store.py   its answers on disk                response_events.py                    from answers to bodies

README.md has every endpoint, and says of each API's fields which are served, refused or ignored, and why.
"""
