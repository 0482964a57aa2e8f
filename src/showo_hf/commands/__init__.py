"""The commands of `showo-hf`, one module each.

A command defines `add_parser(subparsers)`, which returns the new parser, and `run(options)`, which does the work and
returns the exit code. `showo_hf.cli` lists the commands, adds the shared options, and reports errors.
These modules import torch and the models inside functions, after `model_loading.load_package`, so that help and usage
errors take no time. `showo_hf_command` starts the command without importing the package.
"""
