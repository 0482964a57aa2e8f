"""Where the model lies that is shipped with the package. Imports nothing, so that the command line may read it."""

from pathlib import Path


#: Folder of the model that is shipped with the package; any `from_pretrained` takes it.
EMBEDDED_MODEL = str(Path(__file__).parents[1] / "checkpoints" / "showo-world")
