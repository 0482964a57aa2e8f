"""The names of files of weights. Imports nothing, so that the command line may read it."""

#: Suffixes by format.
SAFETENSORS = (".safetensors",)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
