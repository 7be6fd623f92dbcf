"""Interpolate: from one image to another through the space of latent codes."""

from functools import partial

import gradio as gr
import torch
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, random_on, stop_on
from pictures import checked_seed, number_input, picture_input, read_picture, seconds, to_picture, whole_number
from served_model import ODE_SAMPLER, ServedModel

from sde_diffusers.latent_codes import slerp

MAX_IMAGES = 16
TOLERANCE = 1e-4  # of the solver: at 1e-3 some images come back 20 grey levels off
STEPS = 20  # of the sampler
ANY = "Any class"


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

    return Work(compute, *shown_between(f"seed {seed_a}", f"seed {seed_b}"))


def interpolate_images(model: ServedModel, path_a, path_b, count):
    """The work that shows the images of `count` latent codes on the great circle between those of two images."""
    a, b = (read_picture(path, model.image_shape, model.pixels) for path in (path_a, path_b))
    count = whole_number("Images", count, 2, MAX_IMAGES)

    def compute(work):
        output = model.pipeline(work).interpolate(a, b, count, rtol=TOLERANCE, atol=TOLERANCE, return_dict=True)
        return output.sample[:, 0], output.nfe

    return Work(compute, *shown_between("A", "B"))


def shown_between(first: str, last: str):
    """What a `Work` shows at its end, and meanwhile: captioned pictures, and what they took."""

    def captioned(images):
        middle = (f"{k / (len(images) - 1):.0%}" for k in range(1, len(images) - 1))
        return [(to_picture(image), text) for image, text in zip(images, [first, *middle, last], strict=True)]

    def show(work):
        images, nfe = work.result
        status = f"**{nfe}** evaluations of the network for each image · **{seconds(work.seconds)}**"
        return captioned(images), status

    return show, lambda work: [captioned(work.picture)]


def build(model: ServedModel, random_picture, example_files: list[str]) -> None:
    """The tab's components; for the arguments see `app.py`."""
    between_seeds, between_images = partial(interpolate_seeds, model), partial(interpolate_images, model)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            with gr.Tabs():
                with gr.Tab("Two seeds"):
                    with gr.Row():
                        seed_a = gr.Number(value=1, label="Seed A", min_width=100)
                        seed_b = gr.Number(value=2, label="Seed B", min_width=100)
                    class_name = gr.Dropdown(
                        [ANY, *model.class_names], value=ANY, label="Class", visible=bool(model.class_names)
                    )
                    start_seeds = gr.Button("Interpolate", variant="primary", elem_id="interpolate-seeds")
                with gr.Tab("Two images"):
                    with gr.Row():
                        a = picture_input(value=example_files[0] if example_files else None, label="A", min_width=120)
                        b = picture_input(value=example_files[1] if example_files else None, label="B", min_width=120)
                    with gr.Row(elem_classes="buttons"):
                        start_images = gr.Button(
                            "Interpolate", variant="primary", scale=3, elem_id="interpolate-images"
                        )
                        another = gr.Button("Random", scale=2)
            count = number_input("Images", 2, MAX_IMAGES, 8)
            stop = gr.Button("Stop")
        with gr.Column(scale=3, min_width=300):
            gallery = gr.Gallery(
                label="From A to B",
                show_label=False,
                object_fit="contain",
                format="png",
                buttons=["download"],
                elem_classes="pictures",
                elem_id="strip",
                interactive=False,
            )
            status = gr.Markdown(
                "The probability flow ODE gives each image a latent code. Between two codes lie other images.",
                label="status",
                elem_classes="status",
            )
    outputs = [gallery, status]
    inputs = [seed_a, seed_b, count, class_name]
    compute_on(start_seeds.click, between_seeds, inputs, outputs, "interpolate_seeds")
    compute_on(start_images.click, between_images, [a, b, count], outputs, "interpolate_images")
    stop_on(stop.click, "interpolate_seeds", "interpolate_images", "interpolate_example")
    random_on(another.click, lambda work: (random_picture(work), random_picture(work)), [a, b], "random_images")
    examples = {"1 to 2, any class": [1, 2, 8, ANY]}
    examples |= {f"7 to 8, {name}": [7, 8, 8, name] for name in model.class_names[-2:]}
    shown = gr.Examples(
        [*examples.values()],
        inputs,
        api_visibility="private",
        example_labels=[*examples],
        elem_id="interpolate-examples",
    )
    compute_on(shown.load_input_event.then, between_seeds, inputs, outputs, "interpolate_example", **ON_EXAMPLE)
