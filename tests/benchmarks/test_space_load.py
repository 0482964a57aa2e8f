"""The load benchmark with 40 requests: nothing is lost, nothing is wrong."""

import pytest


pytest.importorskip("gradio")

from benchmarks import space  # noqa: E402


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_is_wrong_beside_a_hostile_visitor():
    found = space.main(["--requests", "40", "--clients", "5", "--steps", "3", "--hostile", "1"])
    assert len(found) == 2
    for results in found.values():
        assert results.lost == [] and results.wrong == 0 and len(results.waits) == 40
