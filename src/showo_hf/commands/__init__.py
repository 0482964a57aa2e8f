"""The commands of `showo-hf`, one a module.

A command has `add_parser(subparsers)`, which returns the parser that it added, and `run(options)`, which does the work
and returns the exit code. `showo_hf.cli` lists the modules, adds what all commands share, and tells errors in words.
These modules import torch and the models inside functions: a parser needs neither.
"""
