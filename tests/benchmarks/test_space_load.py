"""The load benchmark with 40 requests: nothing is lost, nothing is wrong."""

import pytest


pytest.importorskip("gradio")

from benchmarks import space  # noqa: E402


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_is_wrong_beside_a_hostile_visitor():
    found = space.main(
        ["--parts", "load", "hostile", "--requests", "40", "--clients", "5", "--steps", "3", "--hostile", "1"]
    )
    assert len(found) == 2
    for one in found.values():
        assert one["lost"] == [] and one["wrong"] == 0 and one["requests"] == 40
        assert one["p50"] <= one["p95"]
