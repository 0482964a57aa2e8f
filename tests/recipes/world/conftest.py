import pytest
from world_objects import drawn_objects

from recipes.world.objects import Objects


@pytest.fixture(scope="session")
def objects() -> Objects:
    """See [`drawn_objects`]."""
    return drawn_objects()
