"""The subcommands of comeapi.py.

    bench.py    how fast this machine is with a model, in several shapes
"""
