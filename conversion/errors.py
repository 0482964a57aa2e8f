"""The errors of conversions and exports."""


class ConversionError(ValueError):
    """A checkpoint cannot be converted. The message names the file or the tensors; nothing was written."""


class UploadError(RuntimeError):
    """The output folder is complete, but it could not be uploaded."""
