import pytest

from showo_hf.argument_types import picture_size


@pytest.mark.parametrize(("text", "size"), [("256", (256, 256)), ("256x384", (256, 384)), ("8x16", (8, 16))])
def test_picture_size(text, size):
    assert picture_size(text) == size
