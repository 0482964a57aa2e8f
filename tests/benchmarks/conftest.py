"""The benchmarks are scripts in a folder of their own, as `python benchmarks/t2i.py` finds them."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
