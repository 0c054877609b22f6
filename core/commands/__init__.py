"""The subcommands of comeapi.py. Each begins with main(argv) in the file of its name.

    bench.py      how fast this machine is with a model, in several shapes
        plot.py       its picture
    chat.py       a conversation with the running service
    status.py     how it is
        service.py    the service, as both talk to it
    doctor.py     looks at this machine
        checks.py     what is well, what is not, what to do (pure)
        machine.py    the facts
        trial.py      whether quantized weights can be computed with; in a process of its own
        bandwidth.py  how fast the memory is
    offline.py    a folder for a machine without a network
    pull.py       gets a model
        hub.py        which files a name means, on Hugging Face
        download.py   one file: resumed, checked, then named
        partial.py    what is here of it so far
        web.py        urllib: proxies, redirects, the token, and failures in words
"""
