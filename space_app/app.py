"""A Gradio app that shows score-based models: `python space_app/app.py`, or a Space of the Hugging Face Hub.

The environment variable MODEL_ID chooses a model, an id of the Hub or a folder; without it, the pipelines that ship
with the repository are shown, a page each.
"""

import os
import random
from functools import partial
from pathlib import Path

from temporary_folder import attended_folder, temporary_folder

TEMPORARY = attended_folder() if __name__ == "__main__" else temporary_folder()
os.environ["GRADIO_TEMP_DIR"] = str(TEMPORARY / "files")  # of uploads and pictures
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"  # that it remembers, and looks through after each one

import gradio as gr  # noqa: E402
import tab_generate  # noqa: E402
import tab_inpaint  # noqa: E402
import tab_interpolate  # noqa: E402
import tab_likelihood  # noqa: E402
import tab_one_step  # noqa: E402
import tab_watch  # noqa: E402
import torch  # noqa: E402
from bounded_work import AT_ONCE, Work  # noqa: E402
from door import LIMITS, guarded  # noqa: E402
from pictures import MAX_FILE_SIZE, to_picture  # noqa: E402
from PIL import Image  # noqa: E402
from results import earlier_results  # noqa: E402
from served_model import NoModel, ServedModel, load_models  # noqa: E402

from sde_diffusers.images import PixelFormat  # noqa: E402

TITLE = "Images out of noise"
WORDS = Path(__file__).with_name("words.md")
CACHE_LIFE = 3600  # seconds that files of a visitor are kept
# Colours of text of which the theme's own have too little contrast, 4.5 to 1 at least, on light and on dark ground.
CONTRAST = {
    "block_label_text_color": "*primary_700",
    "block_label_text_color_dark": "*primary_50",
    "block_title_text_color": "*primary_700",
    "block_title_text_color_dark": "*primary_50",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "link_text_color_dark": "*primary_300",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_dark": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_700",
    "button_secondary_background_fill_hover_dark": "*primary_600",
    "checkbox_label_background_fill_selected": "*primary_600",
    "checkbox_label_background_fill_selected_dark": "*primary_600",
}
LOOK = {
    "theme": gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(**CONTRAST),
    "css_paths": Path(__file__).with_name("look.css"),
    "head": f"<script>{Path(__file__).with_name('page.js').read_text(encoding='utf-8')}</script>",
}


class Pictures:
    """Images to start from: of the test set, or, if that is not known, drawn by the model."""

    def __init__(self, model: ServedModel):
        self.model = model

    def random(self, work: Work, deep: bool = False) -> Image.Image:
        """A random one, as what `work` computes; with `deep`, grey ones have as many bits as the data."""
        images = self.model.test_images
        if images is None:
            images = self.model.pipeline(work)(1, 20, output_type="pt").images
        grey_levels = deep and len(images[0]) == 1 and self.model.pixels.levels is not None
        return to_picture(random.choice(images), self.model.pixels if grey_levels else PixelFormat())

    def examples(self, count: int) -> list[Image.Image]:
        """The first test images of the last classes, or images that the model drew."""
        images = self.model.test_images
        if images is None:
            return [] if self.model.drawn is None else [to_picture(image) for image in self.model.drawn[0, :count]]
        return [to_picture(image) for image in images[10 - count : 10]]


def build_app(model_id: str | None) -> gr.Blocks:
    """All pages, one for each model; if there is no model, one that says so."""
    app = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CACHE_LIFE, CACHE_LIFE))
    try:
        first, *others = load_models(model_id)
    except NoModel as error:
        print(error)
        with app:
            gr.Markdown(f"# {TITLE}\n\nThere is nothing to show yet.\n\n{error}")
        return guarded(app)
    with app:
        build_page(first, first)
    for model in others:
        with app.route(model.name):
            build_page(model, first)
    return guarded(app)


def build_page(model: ServedModel, first: ServedModel) -> None:
    """The page of a model; the bar at its top leads to the others', that of `first` being the app's own address."""
    gr.Navbar(main_page_name=first.name)
    history = earlier_results()
    history.unrender()
    (tab_one_step.build if model.consistency else build_tabs)(model, history)
    with gr.Accordion("Earlier results", open=False, elem_id="earlier"):
        history.render()
    with gr.Accordion("What the words mean", open=False, elem_id="words"):
        gr.Markdown(WORDS.read_text(encoding="utf-8"))


def build_tabs(model: ServedModel, history: gr.Gallery) -> None:
    """The components of a score-based model's page; the results of all tabs are put into `history`, too."""
    gr.Markdown(
        f"# {TITLE}\nA score-based model turns noise into images by a stochastic differential equation "
        f"([paper](https://arxiv.org/abs/2011.13456)). This one is **{model.name}**. {model.about}",
        elem_id="title",
    )
    pictures = Pictures(model)
    examples = pictures.examples(3)
    files = []
    for k, picture in enumerate(examples):
        files.append(str(TEMPORARY / f"{Path(model.name).name}-example-{k}.png"))
        picture.save(files[-1])
    with gr.Tabs():
        with gr.Tab("Generate", id="generate"):
            tab_generate.build(model, history)
        with gr.Tab("Inpaint", id="inpaint"):
            tab_inpaint.build(model, history, pictures.random, examples)
        with gr.Tab("Likelihood", id="likelihood"):
            tab_likelihood.build(model, partial(pictures.random, deep=True), files)
        with gr.Tab("Interpolate", id="interpolate"):
            tab_interpolate.build(model, history, pictures.random, files)
        with gr.Tab("Watch", id="watch"):
            tab_watch.build(model, history, pictures.random, files)


def launch(app: gr.Blocks, **options):
    """Serve the page; for the options see `gr.Blocks.launch`."""
    return app.launch(
        **LOOK,
        **LIMITS,
        max_file_size=MAX_FILE_SIZE,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        **options,
    )


if __name__ == "__main__":
    torch.set_num_threads(max(1, torch.get_num_threads() // AT_ONCE))  # or requests would wait for each other's
    launch(build_app(os.environ.get("MODEL_ID") or None))
