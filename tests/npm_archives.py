"""Tiny archives with the layout of npm packages, for tests."""

import io
import tarfile
from pathlib import Path


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    """Write a .tgz with the content of each file by its path in the archive, such as "package/LICENSE"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
