"""What the programs are made of. Nothing here imports a program; tests/test_layers.py holds who may reach whom.

    http/        HTTP/1.1, as a server and as a client       balancing/   which backend takes a request
    apis/        the APIs that a backend speaks              chat/        messages, tools, and the model's text
    engine/      llama.cpp, stepped by one thread            grammar/     which tokens may come next
    system/      what comeapi.py starts and watches          commands/    its subcommands
    page/        the web page that the balancer shows
    ask.py       what may be wanted of an engine             sampling.py  how its tokens are to be chosen

The way of a streamed chat request. Through the balancer:

    in    http/server.py → http/connection.py → http/requesthead.py (heads.py), http/bodies.py (chunks.py)
          → http/server.py (host, key, route) → balancer.py → balancing/request.py → balancing/forwarding.py
          → balancing/visiting.py, balancing/pool.py → http/client.py → http/outgoing.py → the backend
    back  http/answers.py (heads.py, chunks.py) → balancing/relaying.py → http/connection.py

Through the backend:

    in    http/… as above → apis/openai.py → chat/messages.py, chat/tools.py
          → chat/conversation.py → chat/template.py, chat/guided.py
          → apis/endpoint.py → engine/generation.py → engine/engine.py (submit) → engine/admission.py → the inbox
          → engine/engine.py → engine/stepping.py → engine/scheduler.py → engine/decoding.py → engine/llama/context.py
    back  engine/choosing.py → engine/text.py → engine/outcome.py (Channel) → apis/endpoint.py
          → apis/openai.py → chat/parser.py → http/sse.py → http/connection.py

Each is entered once on the way in and once on the way back, but three. http/server.py gives each connection a thread
and answers its requests. engine/engine.py is entered by two threads: the request's, which prepares, and its own, which
computes. apis/openai.py asks chat/parser.py on the way back: a dialect knows that it speaks in messages.
"""
