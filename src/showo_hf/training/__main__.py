"""
`python -m showo_hf.training RECIPE [key=value ...]`: `showo-hf train`.

Launchers such as `accelerate launch` start faster with `-m showo_hf_command train`, which imports the package only after
the arguments are checked.
"""

import sys

from showo_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
