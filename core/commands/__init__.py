"""The subcommands of comeapi.py. Each begins with main(argv) in the file of its name.

    bench.py      how fast this machine is with a model, in several shapes
    chat.py       a conversation with the running service
    status.py     how it is
        service.py    the service, as both talk to it
    pull.py       gets a model
        hub.py        which files a name means, on Hugging Face
        download.py   one file: resumed, checked, then named
        partial.py    what is here of it so far
        web.py        urllib: proxies, redirects, the token, and failures in words
"""
