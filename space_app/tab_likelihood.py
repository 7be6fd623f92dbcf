"""Likelihood: bits per dimension of an image, and its place among test images."""

import bisect
from functools import partial

import gradio as gr
import numpy as np
import pandas as pd
import torch
from bounded_work import Work
from pictures import picture_input, read_picture, seconds, status_of
from served_model import ServedModel

# Of the solver, for these numbers and for those of the test images; a few times 1e-4 bits/dim from the limit.
TOLERANCE = 1e-3
BINS = 30
TEST, YOURS = "test images", "your image"


def likelihood(model: ServedModel, path):
    """Yield bits/dim, what it means, and the histogram; nothing but a line on how far it is until the end."""
    image = read_picture(path, model.image_shape)

    def compute(work):
        pipe = model.pipeline(work)
        return pipe.bits_per_dim(image, torch.Generator().manual_seed(0), rtol=TOLERANCE, atol=TOLERANCE)

    work = Work(compute)
    for _ in work:
        yield gr.skip(), status_of(work), gr.skip()
    value = work.result.bits_per_dim.item()
    cost = f"{work.result.nfe} evaluations of the network · {seconds(work.seconds)}"
    tests = model.test_bits_per_dim
    meaning = f"## {value:.2f} bits/dim\n" + (place(value, tests) if tests else NO_TESTS)
    yield round(value, 3), f"{meaning}\n\n{cost}", histogram(tests, value) if tests else gr.skip()


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


def histogram(tests: list[float], value: float | None = None) -> pd.DataFrame:
    """Bars of the test images' bits/dim and, as high as the highest of them, one at `value`."""
    counts, edges = np.histogram(tests, BINS)
    width = edges[1] - edges[0]
    rows = [(left + width / 2, count, TEST) for left, count in zip(edges, counts, strict=False)]
    if value is not None:
        k = round((value - edges[0] - width / 2) / width)  # of the grid of bars, beyond its ends as well
        rows.append((edges[0] + (k + 0.5) * width, counts.max(), YOURS))
    frame = pd.DataFrame(rows, columns=["bits/dim", "images", "which"])
    return frame.round({"bits/dim": 3})


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
                another = gr.Button("🎲 Random", scale=2)
        with gr.Column(scale=3, min_width=300):
            status = gr.Markdown(
                "How many bits does the model need for each pixel? Fewer means more likely." if tests else NO_TESTS,
                label="status",
                elem_classes="status",
                elem_id="likelihood-status",
            )
            plot = gr.BarPlot(
                histogram(tests) if tests else None,
                x="bits/dim",
                y="images",
                color="which",
                color_map={TEST: "#a5b4fc", YOURS: "#f97316"},
                label=f"Bits/dim of {len(tests):,} test images" if tests else None,
                height=280,
                visible=bool(tests),
                buttons=[],
                elem_id="histogram",
            )
            bits_per_dim = gr.Number(label="bits per dim", interactive=False, visible=False)
    outputs = [bits_per_dim, status, plot]
    event = start.click(
        measure, image, outputs, api_name="bits_per_dim", concurrency_id="network", trigger_mode="once"
    )
    stop.click(None, cancels=[event], api_visibility="private")
    another.click(random_picture, None, image, queue=False, api_name="random_image")
    if example_files:
        gr.Examples(
            [[file] for file in example_files],
            [image],
            outputs,
            measure,
            cache_examples=True,
            cache_mode="lazy",
            api_visibility="private",
            elem_id="likelihood-examples",
        )
