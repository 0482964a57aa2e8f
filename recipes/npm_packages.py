"""npm packages with pinned versions: `npm pack` fetches their archives, which are read without being unpacked."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path


LICENCE_STEMS = ("LICENSE", "LICENCE", "NOTICE", "README")


def fetch_package(name: str, version: str, cache: str | os.PathLike) -> Path:
    """The archive of an npm package in the folder `cache`. `npm pack` fetches it if it is missing.

    Raises:
        RuntimeError: if npm is missing or cannot fetch the package.
    """
    cache = Path(cache)
    archive = cache / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if archive.exists():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    # npm writes into a temporary folder, so that an interrupted download does not look like a cached archive.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [shutil.which("npm") or "npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", folder]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise RuntimeError(f"fetching {name}@{version} needs the command `npm`, which was not found") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"`{' '.join(command[:3])}` failed: {error.stderr.strip()}") from error
        os.replace(Path(folder) / archive.name, archive)
    return archive


def read_members(archive: Path, prefix: str, suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of the regular files of a .tgz that match `prefix` and `suffix`."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(prefix) and member.name.endswith(suffix):
                yield member.name, tar.extractfile(member).read()


def write_licences(folder: Path, archives: list[Path]) -> None:
    """Write the licences and READMEs of npm archives into `folder`, one folder for each archive."""
    for archive in archives:
        for path, content in read_members(archive, "package/"):
            name = path.removeprefix("package/")
            if "/" not in name and name.upper().startswith(LICENCE_STEMS):
                target = folder / archive.stem / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
