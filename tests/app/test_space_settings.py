"""What a visitor may ask for, and what the environment may set."""

import pytest


pytest.importorskip("gradio")

from showo_hf.app.create_tab import settings_of_link  # noqa: E402
from showo_hf.app.settings import OWN_SAMPLER, DrawSettings, Refusal, SpaceOptions  # noqa: E402
from showo_hf.app.space import new_seed  # noqa: E402


SAMPLERS = [OWN_SAMPLER, "halton"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"prompt": "  "}, "Please write"),
        ({"prompt": None}, "Please write"),
        ({"prompt": 3}, "Please write a text"),
        ({"prompt": "apple " * 100}, "at most 300 characters"),
        ({"prompt": "a\0b"}, "not valid"),
        ({"prompt": "\ud800"}, "not valid"),
        ({"negative_prompt": "x" * 301}, "at most 300 characters"),
        ({"steps": 0}, "Steps must be a whole number from 1 to 50"),
        ({"steps": 2.5}, "Steps"),
        ({"steps": True}, "Steps"),
        ({"steps": 10**400}, "Steps"),
        ({"steps": float("nan")}, "Steps"),
        ({"guidance": 1e9}, "Guidance must be a number from 1 to 20"),
        ({"guidance": float("nan")}, "Guidance"),
        ({"guidance": "3"}, "Guidance"),
        ({"temperature": -1}, "Temperature"),
        ({"count": 5}, "Images"),
        ({"seed": -1}, "Seed"),
        ({"seed": 2**31}, "Seed"),
        ({"seed": 2**31 - 1, "count": 2}, "Seed must be at most 2147483646 for 2 images"),
        ({"sampler": "none"}, "sampler must be one of"),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(values, message):
    with pytest.raises(Refusal, match=message) as refusal:
        DrawSettings(**{"prompt": "an owl", **values}).checked(SAMPLERS)
    assert "\n" not in str(refusal.value)


def test_texts_are_stripped_and_whole_numbers_are_whole():
    settings = DrawSettings(" an owl\n", steps=3.0, guidance=2, seed=5.0).checked(SAMPLERS)
    assert settings == DrawSettings("an owl", steps=3, guidance=2.0, seed=5)
    assert isinstance(settings.steps, int) and isinstance(settings.seed, int)


def test_the_settings_of_the_last_image_can_be_restored(monkeypatch):
    asked = DrawSettings("an owl", seed=2**31 - 4, count=4).checked(SAMPLERS)
    last = asked.with_seed(asked.seed + 3)
    assert last.checked(SAMPLERS).seed == 2**31 - 1
    monkeypatch.setattr("random.randint", lambda least, most: most)
    DrawSettings("an owl", seed=new_seed(), count=4).checked(SAMPLERS)


def test_settings_are_the_same_after_json():
    settings = DrawSettings("an owl", temperature=0.5, sampler="halton", height=96, width=144, count=2, seed=3)
    assert DrawSettings.from_json(settings.to_json()) == settings


def test_a_link_holds_settings():
    query = {"prompt": "an owl", "negative": "cats", "steps": "5", "guidance": "3.5", "seed": "7", "sampler": "halton"}
    assert settings_of_link(query, {"steps": 9, "height": 8}) == DrawSettings(
        "an owl", negative_prompt="cats", steps=5, guidance=3.5, seed=7, sampler="halton", height=8
    )
    with pytest.raises(Refusal, match="no numbers"):
        settings_of_link({"prompt": "an owl", "steps": "many"}, {})


def test_options_come_from_the_environment():
    assert SpaceOptions.from_environment({}) == SpaceOptions()
    found = SpaceOptions.from_environment({"SHOWO_MODEL": "a/b", "SHOWO_JOB_SECONDS": "2.5", "SHOWO_PROXIES": "2"})
    assert found == SpaceOptions(model="a/b", job_seconds=2.5, proxies=2)


@pytest.mark.parametrize("value", ["many", "-1", "0", "1.5"])
def test_a_wrong_option_is_named(value):
    with pytest.raises(ValueError, match="(?i)jobs_per_minute"):
        SpaceOptions.from_environment({"SHOWO_JOBS_PER_MINUTE": value})
