import pytest

from showo_hf.utils.argument_types import image_size


@pytest.mark.parametrize(("text", "size"), [("256", (256, 256)), ("256x384", (256, 384)), ("8x16", (8, 16))])
def test_image_size(text, size):
    assert image_size(text) == size
