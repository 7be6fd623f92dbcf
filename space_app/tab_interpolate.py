"""Interpolate: from one image to another through the space of latent codes."""

from functools import partial

import gradio as gr
import torch
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, random_on, stop_on
from picture_examples import picture_examples
from pictures import (
    checked_seed,
    counted,
    number_input,
    picture_input,
    read_picture,
    seconds,
    show_what_is_seen,
    status_line,
    whole_number,
)
from results import (
    Result,
    download_button,
    file_name,
    finished,
    gallery_items,
    remember,
    result_gallery,
    while_forming,
)
from served_model import ANY, ODE_SAMPLER, ServedModel

from sde_diffusers.likelihood.latent_codes import slerp

MAX_IMAGES = 16
TOLERANCE = 1e-4  # of the solver: at 1e-3 some images come back 20 grey levels off
STEPS = 20  # of the sampler


def interpolate_seeds(model: ServedModel, seed_a, seed_b, count, class_name):
    """The work that shows the images of `count` latents on the great circle between those of two seeds."""
    seed_a, seed_b = checked_seed(seed_a), checked_seed(seed_b)
    count = whole_number("Images", count, 2, MAX_IMAGES)
    ends = [
        torch.randn(1, *model.image_shape, generator=torch.Generator().manual_seed(seed)) for seed in (seed_a, seed_b)
    ]
    latents = slerp(*ends, torch.linspace(0, 1, count)).flatten(0, 1)

    def compute(work):
        pipe = model.pipeline(work, model.scheduler(ODE_SAMPLER))
        output = pipe(count, STEPS, class_labels=model.labels(class_name), latents=latents, output_type="pt")
        return output.images, output.nfe

    return Work(compute, *shown_between(*between_seeds(model, seed_a, seed_b, class_name)))


def between_seeds(model: ServedModel, seed_a, seed_b, class_name) -> tuple[str, str, list]:
    """What ends and files are called: the arguments of `between`."""
    first = class_name if class_name in model.class_names else ANY
    return f"seed {seed_a}", f"seed {seed_b}", [first, "seeds", seed_a, "to", seed_b, STEPS, "steps"]


def interpolate_images(model: ServedModel, path_a, path_b, count):
    """The work that shows the images of `count` latent codes on the great circle between those of two images."""
    a, b = (read_picture(path, model.image_shape, model.pixels) for path in (path_a, path_b))
    count = whole_number("Images", count, 2, MAX_IMAGES)

    def compute(work):
        output = model.pipeline(work).interpolate(a, b, count, rtol=TOLERANCE, atol=TOLERANCE, return_dict=True)
        return output.sample[:, 0], output.nfe

    return Work(compute, *shown_between("A", "B", ["image A to B"]))


def between(images, first: str, last: str, words: list) -> list[Result]:
    """Images on the way from one to another.

    Args:
        first, last: the captions of the ends.
        words: for the names of the files.
    """
    shares = [k / (len(images) - 1) for k in range(len(images))]
    captions = [first, *(f"{share:.0%}" for share in shares[1:-1]), last]
    return [
        Result(image, caption, file_name(*words, "at", f"{share:.0%}"))
        for image, caption, share in zip(images, captions, shares, strict=True)
    ]


def shown_between(*ends_and_words):
    """What a `Work` shows at its end, and meanwhile: captioned pictures, and what they took."""
    *_, words = ends_and_words

    def show(work):
        images, nfe = work.result
        status = f"**{counted(nfe)}** of the network for each image · **{seconds(work.seconds)}**"
        gallery, download = finished(between(images, *ends_and_words), file_name(*words))
        return gallery, status, download

    return show, lambda work: while_forming(between(work.picture, *ends_and_words), work.share)


def example_settings(model: ServedModel) -> dict[str, list]:
    """The examples by their names, in the order of `interpolate_seeds`."""
    examples = {"1 to 2, any class": [1, 2, 8, ANY]} if model.without_class else {}
    return examples | {f"7 to 8, {name}": [7, 8, 8, name] for name in model.class_names[-2:]}


def first_pictures(model: ServedModel, images, seed_a, seed_b, count, class_name) -> list:
    """What the page begins with, of an example."""
    return gallery_items(between(images, *between_seeds(model, seed_a, seed_b, class_name)))


def build(model: ServedModel, history: gr.Gallery, random_picture, example_files: list[str]) -> None:
    """The tab's components; its results are put into `history`, too. For the other arguments see `app.py`."""
    of_seeds, of_images = partial(interpolate_seeds, model), partial(interpolate_images, model)
    examples = example_settings(model)
    rows = None if model.drawn is None else model.drawn[-len(examples) :]
    first = None if rows is None else first_pictures(model, rows[0], *[*examples.values()][0])
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            with gr.Tabs():
                with gr.Tab("Two seeds"):
                    with gr.Row():
                        seed_a = gr.Number(value=1, label="Seed A", info="Of the first noise", min_width=100)
                        seed_b = gr.Number(value=2, label="Seed B", info="Of the last", min_width=100)
                    class_name = gr.Dropdown(
                        model.class_choices,
                        value=model.class_choices[0],
                        label="Class",
                        info="Of all images",
                        visible=bool(model.class_names),
                    )
                    with gr.Row(elem_classes="buttons"):
                        start_seeds = gr.Button("Interpolate", variant="primary", scale=3, elem_id="interpolate-seeds")
                        stop_seeds = gr.Button("Stop", scale=1)
                with gr.Tab("Two images"):
                    with gr.Row():
                        a = picture_input(value=example_files[0] if example_files else None, label="A", min_width=120)
                        b = picture_input(value=example_files[1] if example_files else None, label="B", min_width=120)
                    with gr.Row():
                        for image in (a, b):
                            with gr.Column(min_width=120):
                                show_what_is_seen(image, model)
                    with gr.Row(elem_classes="buttons"):
                        start_images = gr.Button(
                            "Interpolate", variant="primary", scale=3, elem_id="interpolate-images"
                        )
                        stop_images = gr.Button("Stop", scale=1)
                        another = gr.Button("Random", scale=2)
            count = number_input("Images", 2, MAX_IMAGES, 8, info="With both ends")
        with gr.Column(scale=3, min_width=300, elem_classes="results"):
            gallery = result_gallery("From A to B", "strip", first)
            status = status_line(
                "The probability flow ODE gives each image a latent code, the noise that it comes from. Between two "
                "codes lie other images."
            )
            download = download_button()
    outputs = [gallery, status, download]
    inputs = [seed_a, seed_b, count, class_name]
    remember(compute_on(start_seeds.click, of_seeds, inputs, outputs, "interpolate_seeds"), gallery, history)
    remember(compute_on(start_images.click, of_images, [a, b, count], outputs, "interpolate_images"), gallery, history)
    for stop in (stop_seeds, stop_images):
        stop_on(stop.click, "interpolate_seeds", "interpolate_images", "interpolate_example")
    random_on(another.click, lambda work: (random_picture(work), random_picture(work)), [a, b], "random_images")
    chosen = picture_examples(examples, rows, inputs, "interpolate-examples")
    example = compute_on(chosen.then, of_seeds, inputs, outputs, "interpolate_example", **ON_EXAMPLE)
    remember(example, gallery, history)
