"""Hostile cases: what a request, a file or a backend may do, and what it must get. Read in this order:

    enemy.py               raw sockets, the servers under attack, what is expected in one line
    conftest.py            the servers as fixtures, and the figure at the end: N tried, N right
    test_http.py           bytes on the wire
    test_origins.py        whose web page, whose host name, whose key
    test_bodies.py         bodies, dialect by dialect
    test_grammars.py       GBNF, samplers and JSON schemas that would kill or stall the engine
    test_upstreams.py      what a hostile backend answers the balancer
    test_admin.py          the admin API, and where keys may not go
    test_roles.py          roles that a message's text tries to forge
    test_slow.py           slow readers, slow senders, floods (marker: slow)
    test_fuzz.py           the same by chance, with hypothesis (marker: fuzz)

Each case is a row of a table. After each one the same process, by its pid, answers the next good request.
"""
