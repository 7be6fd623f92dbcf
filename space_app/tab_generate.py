"""Generate: images that appear while they form."""

import json
import random
from functools import partial

import gradio as gr
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, stop_on
from picture_examples import picture_examples
from pictures import checked_seed, counted, friendly, generators, number_input, seconds, status_line, whole_number
from results import (
    download_button,
    file_name,
    finished,
    gallery_items,
    remember,
    result_gallery,
    while_forming,
    with_seeds,
)
from served_model import ANY, DEFAULT_SAMPLER, ODE_SAMPLER, SAMPLERS, ServedModel

MAX_IMAGES, MAX_STEPS, MAX_GUIDANCE = 16, 200, 8
FIRST_IMAGES = 8
# Of the image that is enlarged, or else of the first: its seed, no new one, and one image.
KEEP_SEED = """(...settings) => {
    const captions = [...document.querySelectorAll("#generated .caption, #generated .caption-label")];
    const seed = captions.length && captions[0].textContent.match(/seed (\\d+)/);
    return seed ? [Number(seed[1]), false, 1] : settings;
}"""


def generate(model: ServedModel, class_name, sampler, steps, guidance, count, seed, new_seed=False):
    """The work that shows captioned pictures while they form, and at last the images.

    Args:
        class_name: of the model's classes; any other name is no class.
        sampler: of `SAMPLERS`.
        steps, guidance, count: see the limits above.
        seed: of the first image; the others have those that follow.
        new_seed: take a random one instead.
    """
    steps, count = whole_number("Steps", steps, 1, MAX_STEPS), whole_number("Images", count, 1, MAX_IMAGES)
    seed = random.randrange(10_000) if new_seed else checked_seed(seed)
    label = model.labels(class_name)
    if label is None and guidance != 1:
        raise friendly("Guidance other than 1 leads towards a class: choose one.")
    if guidance != 1 and not model.without_class:
        raise friendly("Guidance must be 1: this network never learnt to draw without a class.")
    scheduler = model.scheduler(sampler)

    def compute(work):
        return model.pipeline(work, scheduler)(
            count,
            steps,
            class_labels=label,
            guidance_scale=guidance,
            generator=generators(seed, count),
            output_type="pt",
        )

    words = settings_in_words(class_name if label is not None else ANY, sampler, steps, guidance)

    def results(images):
        return with_seeds(images, seed, *words)

    def show_state(work):
        return while_forming(results(work.picture), work.share)

    def show(work):
        output = work.result
        status = f"**{counted(output.nfe)}** of the network for each image · **{seconds(work.seconds)}**"
        gallery, download = finished(results(output.images), file_name(*words, "seed", seed))
        return gallery, status + " · tap an image to enlarge it", download

    return Work(compute, show, show_state)


def settings_in_words(class_name, sampler, steps, guidance) -> list[str]:
    """For the names of files. Guidance of 1 is none, and not named."""
    return [class_name, sampler, f"{steps} steps", *([] if guidance == 1 else [f"guidance {guidance:.15g}"])]


def first_settings(model: ServedModel) -> list:
    """What the page begins with, in the order of `generate`."""
    return [model.class_choices[0], DEFAULT_SAMPLER, SAMPLERS[DEFAULT_SAMPLER][2], 1, FIRST_IMAGES, 0, False]


def example_settings(model: ServedModel) -> dict[str, list]:
    """The examples by their names; none for a model without classes."""
    classes = model.class_names
    if not classes:
        return {}
    middle = classes[len(classes) // 2]
    second = ("guidance 3", 3) if model.without_class else ("10 steps", 1)
    return {
        f"{classes[-1]}, 20 steps": [classes[-1], DEFAULT_SAMPLER, 20, 1, 8, 1, False],
        f"{classes[0]}, {second[0]}": [classes[0], ODE_SAMPLER, 10, second[1], 8, 2, False],
        f"{middle}, ancestral": [middle, "Ancestral", 50, 1, 8, 3, False],
    }


def build(model: ServedModel, history: gr.Gallery) -> None:
    """The tab's components; its results are put into `history`, too."""
    draw = partial(generate, model)
    first_words = settings_in_words(*first_settings(model)[:4])
    first = None if model.drawn is None else gallery_items(with_seeds(model.drawn[0], 0, *first_words))
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            class_name = gr.Dropdown(
                model.class_choices,
                value=model.class_choices[0],
                label="Class",
                info="What the images shall show",
                visible=bool(model.class_names),
            )
            sampler = gr.Dropdown(
                [*SAMPLERS],
                value=DEFAULT_SAMPLER,
                label="Sampler",
                info="How noise is led to images: an SDE adds fresh noise on the way, an ODE does not",
            )
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Generate", variant="primary", scale=3)
                stop = gr.Button("Stop", scale=1)
            with gr.Accordion("Steps, guidance, seed", open=False):
                steps = number_input(
                    "Steps", 1, MAX_STEPS, SAMPLERS[DEFAULT_SAMPLER][2], info="More are slower and finer"
                )
                guidance = number_input(
                    "Guidance",
                    0,
                    MAX_GUIDANCE,
                    1,
                    step=0.1,
                    info="Above 1: more typical of the class, less diverse",
                    visible=bool(model.class_names) and model.without_class,
                )
                count = number_input("Images", 1, MAX_IMAGES, FIRST_IMAGES)
                new_seed = gr.Checkbox(value=True, label="New seed each time")
                seed = gr.Number(
                    value=0,
                    precision=None,
                    label="Seed of the first image",
                    info="The number that the noise comes from: the same seed and settings draw the same image",
                )
        with gr.Column(scale=3, min_width=300, elem_classes="results"):
            gallery = result_gallery("Images", "generated", first)
            status = status_line("Press *Generate* and watch images form out of noise.")
            with gr.Row(elem_classes="buttons"):
                keep = gr.Button("Keep this seed", size="sm")
                download = download_button()
    inputs = [class_name, sampler, steps, guidance, count, seed, new_seed]
    outputs = [gallery, status, download]
    remember(compute_on(start.click, draw, inputs, outputs, "generate"), gallery, history)
    stop_on(stop.click, "generate", "generate_example")
    steps_of = json.dumps({name: steps for name, (_, _, steps) in SAMPLERS.items()})
    sampler.change(None, sampler, steps, js=f"name => ({steps_of})[name]", api_visibility="private")
    keep.click(None, [seed, new_seed, count], [seed, new_seed, count], js=KEEP_SEED, api_visibility="private")
    examples = example_settings(model)
    if examples:
        rows = None if model.drawn is None else model.drawn[1 : 1 + len(examples)]
        chosen = picture_examples(examples, rows, inputs, "generate-examples")
        example = compute_on(chosen.then, draw, inputs, outputs, "generate_example", **ON_EXAMPLE)
        remember(example, gallery, history)
