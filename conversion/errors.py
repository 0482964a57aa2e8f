"""The error of conversions and exports."""


class ConversionError(ValueError):
    """A checkpoint cannot be converted. The message names the file or the tensors; nothing was written."""
