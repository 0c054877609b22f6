"""What the programs are made of. Nothing here imports a program; tests/test_layers.py holds who may reach whom.

    http/        HTTP/1.1, as a server and as a client       balancing/   which backend takes a request
    apis/        the APIs that a backend speaks              chat/        messages, tools, and the model's text
    engine/      llama.cpp, stepped by one thread            grammar/     which tokens may come next
    system/      what comeapi.py starts and watches          commands/    its subcommands

The way of a streamed chat request. Through the balancer:

    http/server.py → http/connection.py → http/requesthead.py (heads.py), http/bodies.py (chunks.py)
    → http/server.py (host, key, route) → balancer.py → balancing/request.py → balancing/forwarding.py
    → balancing/pool.py → http/client.py → http/outgoing.py → the backend
    and back: http/answers.py (heads.py, chunks.py) → balancing/relaying.py → http/connection.py

Through the backend:

    http/… as above → apis/openai.py → chat/template.py, chat/tools.py → chat/conversation.py → apis/endpoint.py
    → engine/engine.py → engine/scheduler.py → engine/llama.py
    and back: engine/text.py → apis/endpoint.py → chat/conversation.py → chat/parser.py → apis/openai.py → http/sse.py
    → http/connection.py
"""
