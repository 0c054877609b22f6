"""The balancer: which backend takes a request, and what happens when it fails. How to operate it: README.md.

Files in reading order:

    request.py        what a request asks for: model, client, beginning of the prompt
    backends.py       what is known of one backend, and of one request's place
    vitals.py         whether a backend may be used: its states, as probes and requests change them
    roster.py         all backends under the one lock, to be looked at
    choice.py         which of them may take a request: rules 1 to 3
    homes.py          where conversations are at home, for any balancer
    policies.py       which of those takes it: round-robin, least-busy, prefix
    queueing.py       the queue of requests, fair between clients
    loners.py         requests that must run alone
    pool.py           all of this together: a request gets its backend, and gives it back
    errand.py         one request on its way: what was tried for it, what is known of its answer
    admission.py      a request's way to a place: at once, or after a wait in the queue
    visiting.py       its way to one backend and back
    forwarding.py     the table of retries: which backends it goes to, one after another
    elsewhere.py      stored answers that a backend of another machine may have
    carrying.py       an answer that another backend goes on with
    journal.py        memory that outlives a balancer: what is known of its requests in flight
    keeping.py        how they get there, and their connections to the parent
    adoption.py       answers of a balancer that was killed: this one goes on with them
    watching.py       how a request waits for bytes of its backend
    keepalive.py      which bytes are a sign of life
    relaying.py       headers, and answers in pieces
    quarantine.py     requests that end backends
    deaths.py         whether a backend has died under one
    health.py         the thread that probes backends
    probing.py        which probe is due when, and what its outcome changes
    facts.py          what is believed of what backends tell
    membership.py     backends that come and go
    specs.py          how a backend is named
    admin.py          the API that changes the backends
    registration.py   backends that call this API themselves
    discovery.py      backends found by DNS
    credentials.py    the keys that backends are shown
    catalogue.py      the models behind the balancer, and their aliases
    ollama.py         the same in the lists of Ollama's API
    counting.py       metrics
    history.py        the last ten minutes, a sample a second
    feed.py           what the web page is told, once a second
    openapi.py        what the OpenAPI document tells of the balancer's own routes

Glossary:

    able              a backend that may have a request's model, is not draining, and was not tried for this request
    adopt             to go on with an answer of the balancer before this one, which was killed
    alone, loner      a request that must run alone on its backend, since a backend has died under it
    crowded           a backend whose slots others have: other balancers and plain clients
    doubted           a backend that has requests and sends nothing: it is to be looked at
    carry on          to let another backend go on with an answer; a leg is the part of it that one backend tells, the
                      notes are what must be known of it
    drain             to send a backend no more requests; the running ones move to another one, or end
    ejected           a backend that is up, but fails its requests: it is left out for a while
    guest             a request at a backend, look-ups (GET) included; one that needs a slot is also "in flight"
    guilty            a request that a backend has died under while it ran alone: it is not sent again
    head              what all turns of a conversation begin with; its home is the backend where they belong
    hope              a request may wait though no backend is up, since one was before or is loading
    life              what tells one run of a backend's process from the next, such as its process number
    look              a quick probe: /health alone, and one second for it
    orphan            a request that the balancer before this one has left
    pace              how many tokens a backend generates per second
    prompt            a backend whose /health answers at once, however busy it is: silence there means that it is dead
    quarantine        the memory of requests that backends have died under
    source            what has found a backend: an option, the backends file, a DNS name, registration
    stalled           a backend that says that its engine is in a step that takes much too long, and may still end
    suspect           a backend that a connection was lost to, until a probe passes; or a request that must run alone
    ticket            one request's place: at a backend, in the queue, or nowhere
    turn              the moment when a crowded backend has a slot for this balancer (core/places.py)
    watched           somebody reads the feed, so that figures must be fresh
    wedged            a backend that says that its engine has stopped for good
    wish              what a request asks for, as far as routing must know it
"""
