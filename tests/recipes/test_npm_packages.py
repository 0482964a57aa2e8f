"""npm packages: archives that are there are not fetched."""

import pytest
from npm_archives import write_archive

from recipes.npm_packages import fetch_package, read_members


def test_a_cached_archive_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    archive = write_archive(tmp_path / "some-package-1.0.0.tgz", {"package/LICENSE": b"free", "package/a.png": b"A"})
    assert fetch_package("@some/package", "1.0.0", tmp_path) == archive
    assert list(read_members(archive, "package/", ".png")) == [("package/a.png", b"A")]


def test_without_npm_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="needs the command `npm`"):
        fetch_package("some-package", "1.0.0", tmp_path)
    assert list(tmp_path.iterdir()) == []
