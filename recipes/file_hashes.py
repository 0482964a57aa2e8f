"""Hashes of files: which weights, configs or data a result belongs to."""

import hashlib
from collections.abc import Sequence
from pathlib import Path


def weights_hash(path: str | Path, without: str | None = None) -> str:
    """
    The first 16 digits of the sha256 of a file, or of all weights (*.safetensors, by name) below a folder.

    Args:
        path: the file or folder.
        without: the name of a folder in it whose weights do not count.

    Raises:
        FileNotFoundError: if there are none.
    """
    return files_hash(path, ("*.safetensors",), without)


def files_hash(path: str | Path, patterns: Sequence[str], without: str | None = None) -> str:
    """
    The first 16 digits of the sha256 of a file, or of all files below a folder that match a pattern, by name.

    Files in the folder `without` of it do not count.

    Raises:
        FileNotFoundError: if there are none.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for pattern in patterns for file in path.rglob(pattern))
        files = [file for file in files if without is None or path / without not in file.parents]
    if not files:
        raise FileNotFoundError(f"`path` must be a file, or a folder with {' or '.join(patterns)}, got {path}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode() if path.is_dir() else b"")
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]
