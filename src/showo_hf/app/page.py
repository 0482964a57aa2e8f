"""The whole page, and how it starts."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline

from .api import Api
from .ask_tab import AskTab
from .chat_tab import ChatTab
from .compare_tab import CompareTab
from .components import UploadsOnly
from .create_tab import CreateTab
from .edit_tab import EditTab
from .engine import Drawn, Engine, collect
from .gate import Gate
from .model_card import model_facts
from .page_parts import Shared
from .settings import DrawSettings, SpaceOptions
from .space import Space
from .zero_gpu import best_device, compile_ahead


logger = logging.getLogger(__name__)

STYLE = Path(__file__).with_name("style.css")
EXAMPLE_STEPS, EXAMPLE_SEED = 12, 7
MAX_THREADS = 64  # events of Gradio at once; those that wait in our line need no thread
TABS = ("create", "edit", "ask", "chat", "compare")

#: Switches between light and dark, and keeps the choice in this browser.
TOGGLE_THEME = """
() => {
  const dark = document.body.classList.toggle('dark');
  try { localStorage.setItem('showo-theme', dark ? 'dark' : 'light'); } catch (error) {}
}
"""
KEPT_THEME = """
() => {
  let kept = null;
  try { kept = localStorage.getItem('showo-theme'); } catch (error) {}
  if (kept) document.body.classList.toggle('dark', kept === 'dark');
  document.documentElement.lang = 'en';
}
"""


def theme() -> gr.themes.Base:
    """Colours with enough contrast in light and dark, and fonts of the visitor's own machine."""
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_label_background_fill="*neutral_100",
        block_label_background_fill_dark="*neutral_800",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_border_width="1px",
        input_border_color="*neutral_400",
        input_border_color_dark="*neutral_500",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        button_secondary_border_color="*neutral_400",
        button_secondary_border_color_dark="*neutral_500",
        button_border_width="1px",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def load_pipeline(model: str | None = None) -> ShowoT2IPipeline:
    """
    Load a model to the accelerator if there is one.

    Args:
        model (`str`, *optional*): a folder or a Hub name; by default `SHOWO_MODEL`, else the embedded model.
    """
    pipe = ShowoT2IPipeline.from_pretrained(model or os.environ.get("SHOWO_MODEL") or EMBEDDED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(best_device())


def build_space(pipe: Any, options: SpaceOptions | None = None, warm_up: bool = True) -> Space:
    """
    The app behind the page for a loaded pipeline.

    Args:
        pipe: a pipeline of this package.
        options ([`SpaceOptions`], *optional*): the limits; by default those of the environment.
        warm_up (`bool`): draw the examples now, for their thumbnails and for the time that an image takes.
    """
    options = options or SpaceOptions.from_environment()
    model = options.model or EMBEDDED_MODEL
    space = Space(Engine(pipe), options, model_facts(model, pipe))
    if options.compile:
        compile_ahead(space.engine)
    if warm_up and space.engine.has_images:
        draw_examples(space)
    return space


def draw_examples(space: Space) -> None:
    """Draw the examples, one after the other. The page goes without pictures if the model fails."""
    print("Drawing the examples; the page opens when they are done ...", flush=True)
    settings = DrawSettings("", steps=EXAMPLE_STEPS, guidance=space.engine.usual_guidance, seed=EXAMPLE_SEED)
    try:
        for prompt in space.facts.examples:
            asked = DrawSettings(**{**vars(settings), "prompt": prompt})
            (drawn,) = [
                event
                for event in collect(space.lent(partial(space.engine.draw, settings=asked, previews=False)))
                if isinstance(event, Drawn)
            ]
            space.thumbnails.append((drawn.images[0], prompt))
            space.seconds = drawn.seconds * space.engine.usual_steps / EXAMPLE_STEPS
    except Exception:
        logger.exception("the examples could not be drawn")
        space.thumbnails.clear()


def build_demo(space: Space) -> gr.Blocks:
    """The page. [`launch`] starts it."""
    keep = int(space.options.keep_minutes * 60)
    with UploadsOnly(title="Show-o", analytics_enabled=False, delete_cache=(min(keep, 300), keep)) as demo:
        device = "CPU" if space.engine.pipe.model.device.type == "cpu" else "GPU"
        with gr.Row(elem_classes="showo-head"):
            gr.Markdown("# Show-o\nOne model that makes images from words, and answers questions about images.")
            toggle = gr.Button("Light or dark", size="sm", min_width=120, scale=0)
        gr.Markdown(space.facts.line(space.seconds, device), elem_classes="showo-facts")
        visit_gallery = gr.Gallery(
            label="Images of this visit",
            show_label=False,
            elem_classes="showo-visit",
            columns=6,
            height="auto",
            format="png",
            object_fit="contain",
            interactive=False,
            buttons=["download", "fullscreen"],
            render=False,
        )
        shared = Shared(space, gr.State([], time_to_live=keep), visit_gallery)
        tabs = [kind(space, shared) for kind in (CreateTab, EditTab, AskTab, ChatTab, CompareTab)]
        with gr.Tabs(selected="create", elem_classes="showo-tabs"):
            for name, tab in zip(TABS, tabs, strict=True):
                with gr.Tab(name.capitalize(), id=name):
                    tab.build()
        shared.build_visit()
        for tab in tabs:
            tab.wire(demo)
        shared.wire()
        toggle.click(None, js=TOGGLE_THEME)
        demo.load(None, js=KEPT_THEME)
        Api(space).build()
    # Our line decides who is next. Gradio only bounds what it holds. No request for a job goes around its queue.
    return demo.queue(max_size=MAX_THREADS * 4, default_concurrency_limit=None, api_open=False)


def launch(demo: gr.Blocks, space: Space, **arguments: Any) -> tuple[Any, str, str]:
    """
    Start the page.

    Args:
        demo: the page of [`build_demo`].
        space: the app behind it.
        arguments: of `gr.Blocks.launch`.

    Returns:
        the server's app, the local address, and the public one.
    """
    defaults: dict[str, Any] = {
        "app_kwargs": {"middleware": [Middleware(Gate, options=space.options)]},
        "theme": theme(),
        "css_paths": [STYLE],
        "footer_links": ["api", "settings"],
        "max_file_size": space.max_bytes,
        "max_threads": MAX_THREADS,
        "mcp_server": importlib.util.find_spec("mcp") is not None,
        "run_history": False,
        "enable_monitoring": False,
        "show_error": False,
        "ssr_mode": False,
        "state_session_capacity": 1000,
    }
    with warnings.catch_warnings():
        # A tool of MCP has no session, so every call of `chat` there starts a conversation; docs/space.md says so.
        warnings.filterwarnings("ignore", "This MCP server includes a tool that has a gr.State input")
        return demo.launch(**{**defaults, **arguments})


def main() -> None:
    """Load the model and serve the page until the process ends."""
    logging.basicConfig()
    try:
        options = SpaceOptions.from_environment()
    except ValueError as error:
        raise SystemExit(f"app: error: {error}") from None
    space = build_space(load_pipeline(options.model or None), options)
    launch(build_demo(space), space)
