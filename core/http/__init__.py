"""HTTP/1.1, as a server and as a client: sockets, messages, access. It knows no models and no backends."""
