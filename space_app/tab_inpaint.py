"""Inpaint: paint over a part of an image, and see what could be there."""

from functools import partial

import gradio as gr
import numpy as np
import torch
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, random_on, stop_on
from pictures import (
    checked_seed,
    counted,
    fitted,
    friendly,
    generators,
    mask_editor,
    number_input,
    picture_file,
    seconds,
    seen_picture,
    status_line,
    to_picture,
    whole_number,
)
from PIL import Image
from results import Result, download_button, file_name, finished, remember, result_gallery, while_forming
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

    words = "inpainted", METHODS[method], f"{steps} steps"

    def results_of(samples):
        given = Result(with_gap(image[0], mask), "what was given", "inpainted-given")
        return [given] + [
            Result(sample, f"seed {seed + k}", file_name(*words, "seed", seed + k)) for k, sample in enumerate(samples)
        ]

    def show(work):
        output = work.result
        results = results_of(output.images)
        if count > 1:
            name = file_name(*words, "seed", seed, "mean of", count)
            results.append(Result(output.mean[0], "their mean", name))
        cost = f"**{counted(output.nfe)}** of the network for each completion"
        if output.products:
            cost += f", and at most {output.products} passes backwards through it (vector-Jacobian products)"
        gallery, download = finished(results, file_name(*words, "seed", seed))
        return gallery, f"{cost} · **{seconds(work.seconds)}**", download

    return Work(compute, show, lambda work: while_forming(results_of(work.picture), work.share))


def read_canvas(painted, shape, pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """What was painted over what: (1, C, H, W) in [0, 1] and (H, W) booleans.

    A pixel of the network's image is missing if at least a quarter of it was painted over.
    """
    if painted is None or painted["background"] is None:
        raise friendly("There is no image yet: upload one, or take a random one.")
    image = fitted(painted["background"], shape, pixels)
    mask = missing(painted["layers"], shape)
    if not mask.any():
        raise friendly("Nothing is painted over yet: choose the brush, and paint over what is to be filled in.")
    return image, mask


def missing(layers: list[Image.Image], shape) -> torch.Tensor:
    """(H, W) booleans."""
    height, width = shape[1:]
    mask = torch.zeros(height, width, dtype=torch.bool)
    for layer in layers:
        opacity = layer.convert("RGBA").getchannel("A").resize((width, height), Image.Resampling.BOX)
        mask |= torch.from_numpy(np.asarray(opacity) >= 64)
    return mask


def seen_on_canvas(model: ServedModel, painted) -> str | None:
    """What the model is given, the missing pixels orange; None for an empty canvas."""
    if painted is None or painted["background"] is None:
        return None
    image = fitted(painted["background"], model.image_shape, model.pixels)
    picture = to_picture(with_gap(image[0], missing(painted["layers"], model.image_shape)))
    return picture_file(picture, "as the model sees it")


def with_gap(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """An image (C, H, W) as (3, H, W) whose missing pixels are orange."""
    rgb = image.expand(3, -1, -1).clone()
    rgb[:, mask] = torch.tensor([249, 115, 22])[:, None] / 255
    return rgb


def build(model: ServedModel, history: gr.Gallery, random_picture, example_pictures: list[Image.Image]) -> None:
    """The tab's components; its results are put into `history`, too.

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
            seen = seen_picture(seen_on_canvas(model, canvas_value(example_pictures[0])) if example_pictures else None)
            with gr.Accordion("Method, steps, seed", open=False):
                method = gr.Dropdown(
                    [*METHODS],
                    value=[*METHODS][0],
                    label="Method",
                    info="How each step is led to agree with the known pixels. Posterior: all images that do, the "
                    "likelier ones more often",
                )
                steps = number_input("Steps", 1, MAX_STEPS, 20, info="More are slower and finer")
                count = number_input("Completions", 1, MAX_COMPLETIONS, 4, info="What could be there, drawn anew")
                seed = gr.Number(
                    value=0,
                    label="Seed of the first completion",
                    info="The number that the noise comes from: the same one draws the same again",
                )
        with gr.Column(scale=3, min_width=300, elem_classes="results"):
            gallery = result_gallery("Completions", "completions")
            status = status_line("Choose the brush, paint over a part of the image, and press *Fill in*.")
            download = download_button()
    inputs, outputs = [canvas, method, steps, count, seed], [gallery, status, download]
    remember(compute_on(start.click, fill_in, inputs, outputs, "inpaint"), gallery, history)
    stop_on(stop.click, "inpaint", "inpaint_example")
    random_on(another.click, lambda work: canvas_value(random_picture(work)), [canvas], "random_canvas")
    look = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
    canvas.change(partial(seen_on_canvas, model), canvas, seen, **look)
    if example_pictures:
        shown = gr.Examples(
            [[painted_example(picture, k)] for k, picture in enumerate(example_pictures)],
            [canvas],
            api_visibility="private",
            elem_id="inpaint-examples",
        )
        example = compute_on(shown.load_input_event.then, fill_in, inputs, outputs, "inpaint_example", **ON_EXAMPLE)
        remember(example, gallery, history)


def canvas_value(picture: Image.Image) -> dict:
    """A picture on the canvas, with nothing painted over.

    By an empty layer and not by none: only what has a layer makes the canvas say that it changed, and of what it says
    Gradio leaves out the first, which would be the first stroke of the brush.
    """
    return {"background": picture, "layers": [Image.new("RGBA", picture.size)], "composite": picture}


def painted_example(picture: Image.Image, k: int) -> dict:
    """The same with a third or half of it painted over: at the bottom, on the right, in the middle."""
    width, height = picture.size
    boxes = [(0, height // 2, width, height), (width // 2, 0, width, height), (0, height // 3, width, 2 * height // 3)]
    layer = Image.new("RGBA", picture.size)
    layer.paste("#f97316", boxes[k % len(boxes)])
    composite = Image.alpha_composite(picture.convert("RGBA"), layer)
    return {"background": picture, "layers": [layer], "composite": composite}
