"""Likelihood: bits per dimension of an image, and its place among test images."""

import bisect
from functools import partial

import gradio as gr
import numpy as np
import torch
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, random_on, stop_on
from pictures import friendly, picture_input, read_picture, seconds
from served_model import ServedModel

TOLERANCE = 1e-2  # of the solver, here and for the test images: for a picture, not for a paper
BINS = 30


def likelihood(model: ServedModel, path):
    """The work that shows bits/dim, what they mean, and the histogram."""
    if model.pixels.levels is None:
        raise friendly(
            f"This model's images hold {model.pixels.dtype} values from {model.pixels.low:g} to "
            f"{model.pixels.high:g}, and a picture levels: measure arrays by pipe.bits_per_dim in Python."
        )
    image = read_picture(path, model.image_shape, model.pixels, deep=True)

    def compute(work):
        pipe = model.pipeline(work)
        return pipe.bits_per_dim(image, torch.Generator().manual_seed(0), rtol=TOLERANCE, atol=TOLERANCE)

    def show(work):
        value = work.result.bits_per_dim.item()
        cost = f"{work.result.nfe} evaluations of the network · {seconds(work.seconds)}"
        tests = model.test_bits_per_dim
        meaning = f"## {value:.2f} bits/dim\n" + (place(value, tests) if tests else NO_TESTS)
        return round(value, 3), f"{meaning}\n\n{cost}", histogram(tests, value) if tests else ""

    return Work(compute, show)


NO_TESTS = (
    "There is no histogram for this model: the bits/dim of test images under it were not computed "
    "(`python space_app/make_model_data.py PIPELINE` does that for models of Fashion-MNIST)."
)


def place(value: float, tests: list[float]) -> str:
    """Where a value lies among those of the test images, in words."""
    tests = sorted(tests)
    below = bisect.bisect_left(tests, value) / len(tests)
    low, high = np.quantile(tests, [0.01, 0.99])
    if value > high:
        return f"**Out of distribution**: less than one in a hundred of {len(tests):,} test images is as unlikely."
    if value < low:
        return (
            f"**Unusually simple**: less than one in a hundred of {len(tests):,} test images takes as few bits. Flat "
            "images do, whether they show a garment or not."
        )
    return f"**In distribution**: {below:.0%} of {len(tests):,} test images are more likely, {1 - below:.0%} less."


def histogram(tests: list[float], value: float | None = None) -> str:
    """The test images' bits/dim as an SVG picture, with a line at `value`."""
    low, high = np.floor(min(tests)), np.ceil(max(tests))
    counts, edges = np.histogram(tests, BINS, (low, high))
    ends = (low, high) if value is None else (min(low, np.floor(value)), max(high, np.ceil(value)))

    def across(x):
        return 20 + 560 * (x - ends[0]) / (ends[1] - ends[0])

    width = across(edges[1]) - across(edges[0]) - 1
    parts = [
        f'<rect class="bar" x="{across(edge):.1f}" y="{200 - 170 * count / counts.max():.1f}" width="{width:.1f}" '
        f'height="{170 * count / counts.max():.1f}"/>'
        for edge, count in zip(edges, counts, strict=False)
        if count
    ]
    parts += [f'<text x="{across(x):.1f}" y="222">{x:g}</text>' for x in np.arange(ends[0], ends[1] + 1)]
    if value is not None:
        x = across(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="22" y2="200"/>')
        parts.append(f'<text class="yours" x="{min(max(x, 50), 550):.1f}" y="16">your image</text>')
    return (
        f'<svg class="histogram" viewBox="0 0 600 250" role="img" aria-label="Histogram of bits per dimension">'
        f'{"".join(parts)}<text x="300" y="245">bits/dim of {len(tests):,} test images</text></svg>'
    )


def build(model: ServedModel, random_picture, example_files: list[str]) -> None:
    """The tab's components; for the arguments see `app.py`."""
    measure = partial(likelihood, model)
    tests = model.test_bits_per_dim
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = picture_input(
                value=example_files[0] if example_files else None, label="Image", elem_id="likelihood-image"
            )
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Measure", variant="primary", scale=3)
                stop = gr.Button("Stop", scale=1)
                another = gr.Button("Random", scale=2)
        with gr.Column(scale=3, min_width=300):
            status = gr.Markdown(
                "How many bits does the model need for each pixel? Fewer means more likely." if tests else NO_TESTS,
                label="status",
                elem_classes="status",
                elem_id="likelihood-status",
            )
            plot = gr.HTML(histogram(tests) if tests else None, label="histogram", visible=bool(tests))
            bits_per_dim = gr.Number(label="bits per dim", interactive=False, visible=False)
    inputs, outputs = [image], [bits_per_dim, status, plot]
    compute_on(start.click, measure, inputs, outputs, "bits_per_dim")
    stop_on(stop.click, "bits_per_dim", "bits_per_dim_example")
    random_on(another.click, random_picture, inputs, "random_image", api_visibility="public")
    if example_files:
        shown = gr.Examples(
            [[file] for file in example_files], inputs, api_visibility="private", elem_id="likelihood-examples"
        )
        compute_on(shown.load_input_event.then, measure, inputs, outputs, "bits_per_dim_example", **ON_EXAMPLE)
