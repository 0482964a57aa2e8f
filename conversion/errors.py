"""What goes wrong in a conversion."""


class ConversionError(ValueError):
    """A checkpoint cannot be converted; the message names the file or the tensors. Nothing was written."""
