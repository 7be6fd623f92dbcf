"""Inpaint: paint over a part of an image, and see what could be there."""

from functools import partial

import gradio as gr
import numpy as np
import torch
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, random_on, stop_on
from pictures import (
    checked_seed,
    fitted,
    friendly,
    generators,
    mask_editor,
    number_input,
    seconds,
    to_picture,
    whole_number,
)
from PIL import Image
from served_model import ServedModel, WatchedRestorationPipeline

MAX_COMPLETIONS, MAX_STEPS = 8, 50
METHODS = {
    "MMPS (follows the posterior best)": "mmps",
    "Pi-GDM": "pigdm",
    "DPS": "dps",
    "Projection (the paper's)": "projection",
}


def inpaint(model: ServedModel, painted, method, steps, count, seed):
    """The work that shows an image with its gap and `count` completions.

    Args:
        painted: the canvas, {"background": a PIL image, "layers": of which opaque pixels are painted}.
        method: of `METHODS`.
        steps, count: see the limits above.
        seed: of the first completion; the others have those that follow.
    """
    steps = whole_number("Steps", steps, 1, MAX_STEPS)
    count, seed = whole_number("Completions", count, 1, MAX_COMPLETIONS), checked_seed(seed)
    image, mask = read_canvas(painted, model.image_shape, model.pixels)
    # The methods follow the reverse SDE best in first order: docs/restoration.md.
    scheduler = model.scheduler("Reverse SDE, few steps", solver_order=1)

    def compute(work):
        return model.pipeline(work, scheduler, WatchedRestorationPipeline).inpaint(
            image,
            mask,
            method=METHODS[method],
            num_samples=count,
            num_inference_steps=steps,
            generator=generators(seed, count),
            output_type="pt",
        )

    def pictures_of(samples):
        completions = [(to_picture(sample), f"seed {seed + k}") for k, sample in enumerate(samples)]
        return [(with_gap(image[0], mask), "what was given"), *completions]

    def show(work):
        output = work.result
        pictures = pictures_of(output.images)
        if count > 1:
            pictures.append((to_picture(output.mean[0]), "their mean"))
        cost = f"**{output.nfe}** evaluations of the network for each completion"
        if output.products:
            cost += f", with at most {output.products} vector-Jacobian products"
        return pictures, f"{cost} · **{seconds(work.seconds)}**"

    return Work(compute, show, lambda work: [pictures_of(work.picture)])


def read_canvas(painted, shape, pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """What was painted over what: (1, C, H, W) in [0, 1] and (H, W) booleans.

    A pixel of the network's image is missing if at least a quarter of it was painted over.
    """
    if painted is None or painted["background"] is None:
        raise friendly("There is no image yet: upload one, or take a random one.")
    image = fitted(painted["background"], shape, pixels)
    height, width = shape[1:]
    mask = torch.zeros(height, width, dtype=torch.bool)
    for layer in painted["layers"]:
        opacity = layer.convert("RGBA").getchannel("A").resize((width, height), Image.Resampling.BOX)
        mask |= torch.from_numpy(np.asarray(opacity) >= 64)
    if not mask.any():
        raise friendly("Nothing is painted over yet: choose the brush, and paint over what is to be filled in.")
    return image, mask


def with_gap(image: torch.Tensor, mask: torch.Tensor) -> Image.Image:
    """An image (C, H, W) whose missing pixels are orange."""
    rgb = image.expand(3, -1, -1).clone()
    rgb[:, mask] = torch.tensor([249, 115, 22])[:, None] / 255
    return to_picture(rgb)


def build(model: ServedModel, random_picture, example_pictures: list[Image.Image]) -> None:
    """The tab's components.

    Args:
        random_picture: function of a `Work` that gives a PIL image.
        example_pictures: the first is on the canvas from the beginning.
    """
    fill_in = partial(inpaint, model)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            canvas = mask_editor(
                value=canvas_value(example_pictures[0]) if example_pictures else None,
                label="Canvas",
                show_label=False,
                height=360,
                elem_id="canvas",
            )
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Fill in", variant="primary", scale=3)
                stop = gr.Button("Stop", scale=1)
                another = gr.Button("Random", scale=2)
            with gr.Accordion("Method, steps, seed", open=False):
                method = gr.Dropdown([*METHODS], value=[*METHODS][0], label="Method")
                steps = number_input("Steps", 1, MAX_STEPS, 20)
                count = number_input("Completions", 1, MAX_COMPLETIONS, 4)
                seed = gr.Number(value=0, label="Seed of the first completion")
        with gr.Column(scale=3, min_width=300):
            gallery = gr.Gallery(
                label="Completions",
                show_label=False,
                object_fit="contain",
                format="png",
                buttons=["download"],
                elem_classes="pictures",
                elem_id="completions",
                interactive=False,
            )
            status = gr.Markdown(
                "Choose the brush, paint over a part of the garment, and press *Fill in*.",
                label="status",
                elem_classes="status",
            )
    inputs, outputs = [canvas, method, steps, count, seed], [gallery, status]
    compute_on(start.click, fill_in, inputs, outputs, "inpaint")
    stop_on(stop.click, "inpaint", "inpaint_example")
    random_on(another.click, lambda work: canvas_value(random_picture(work)), [canvas], "random_canvas")
    if example_pictures:
        shown = gr.Examples(
            [[painted_example(picture, k)] for k, picture in enumerate(example_pictures)],
            [canvas],
            api_visibility="private",
            elem_id="inpaint-examples",
        )
        compute_on(shown.load_input_event.then, fill_in, inputs, outputs, "inpaint_example", **ON_EXAMPLE)


def canvas_value(picture: Image.Image) -> dict:
    """A picture on the canvas, with nothing painted over."""
    return {"background": picture, "layers": [], "composite": picture}


def painted_example(picture: Image.Image, k: int) -> dict:
    """The same with a third or half of it painted over: at the bottom, on the right, in the middle."""
    width, height = picture.size
    boxes = [(0, height // 2, width, height), (width // 2, 0, width, height), (0, height // 3, width, 2 * height // 3)]
    layer = Image.new("RGBA", picture.size)
    layer.paste("#f97316", boxes[k % len(boxes)])
    composite = Image.alpha_composite(picture.convert("RGBA"), layer)
    return {"background": picture, "layers": [layer], "composite": composite}
