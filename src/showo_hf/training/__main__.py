"""`python -m showo_hf.training RECIPE [key=value ...]`: `showo-hf train` for launchers such as `accelerate launch`."""

import sys

from showo_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
