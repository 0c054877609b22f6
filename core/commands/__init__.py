"""The subcommands of comeapi.py."""
