"""HTTP/1.1, as a server and as a client. It knows no models and no backends. The files, in reading order:

For both
    sockets.py        one step on a socket that does not block; Wire, a client's socket
    heads.py          header lines: syntax, limits, repeated headers
    tls.py            certificates, handshakes, and why one side does not trust the other
    chunks.py         the chunked coding of a body

The server, on ThreadingHTTPServer
    server.py         ServerConfig, the settings; Service listens, checks, routes, counts and drains
    listening.py      the sockets that it listens on: bound here, or handed on by a parent or systemd
    connection.py     one client's connection: its requests are read, handed to the service, and answered
    resuming.py       answers that another process has begun
    written.py        how many bytes were written on a connection, as the kernel knows it
    connections.py    all connections: how many there may be, which are idle, how they end
    requesthead.py    a request's head, taken apart
    bodies.py         a request's body, within its limits
    messages.py       Request, Reply, Stream
    sse.py            a Stream of server-sent events
    routing.py        which handler answers a method and a path
    openapi.py        the OpenAPI document, made from the routes
    schemas.py        JSON schemas of bodies, in few words
    access.py         API keys, and their limits
    origins.py        which names the server may be called by, and which web pages may call it
    metrics.py        counters, gauges and histograms, in Prometheus' format
    counting.py       what a service counts of its own HTTP
    leaving.py        those that check a server's health are told first that it stops
    descriptors.py    how many connections the process has file descriptors for

The client, on urllib
    client.py         Client opens requests
    answers.py        Answer: head, framing, body
    outgoing.py       connections to servers, and the pool of idle ones
    failures.py       Unreachable (Untrusted), Broken, Slow: what can go wrong

Glossary
    head      a message up to its empty line: the request line or status line, and the headers
    framing   how a body's end is known: by Content-Length, by chunks, or by the end of the connection (RFC 9112)
    stale     a kept connection that the server had closed before the next request came
    leaving   the server is about to drain: it serves everybody, and says 503 to those who check its health
    draining  the server takes no new connections; those that run may finish
"""
