"""Likelihood: bits per dimension of an image, how it comes back from noise, and its place among test images."""

import bisect
from functools import partial

import gradio as gr
import numpy as np
import torch
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, random_on, stop_on
from pictures import friendly, picture_input, read_picture, seconds, show_what_is_seen, status_line
from served_model import ServedModel

TOLERANCE = 1e-2  # of the solver, here and for the test images: for a picture, not for a paper
BINS = 30
# Of the reconstruction error: the noise's deviation, with images in [-1, 1], and how often it is drawn. The level told
# unusual images best (docs/how_to/densities.md), where bits/dim fail.
NOISE, DRAWS = 2.0, 8


def likelihood(model: ServedModel, path):
    """The work that shows bits/dim, what they mean, and the histogram."""
    if model.pixels.levels is None:
        raise friendly(
            f"This model's images hold {model.pixels.dtype} values from {model.pixels.low:g} to "
            f"{model.pixels.high:g}, and a picture levels: measure arrays by pipe.bits_per_dim in Python."
        )
    image = read_picture(path, model.image_shape, model.pixels, deep=True)

    def compute(work):
        return scores(model, work, image)

    def show(work):
        bits, error = (work.result[key].item() for key in ("bits_per_dim", "reconstruction_error"))
        cost = f"{work.result['nfe']} evaluations of the network · {seconds(work.seconds)}"
        tests, meaning, picture = model.test_scores, NO_TESTS, ""
        if tests is not None:
            meaning, picture = place(bits, tests["bits_per_dim"]), histogram(tests["bits_per_dim"], bits)
        second = error_place(error, None if tests is None else tests["reconstruction_error"])
        return round(bits, 3), f"## {bits:.2f} bits/dim\n{meaning}\n\n{second}\n\n{cost}", picture

    return Work(compute, show)


def scores(model: ServedModel, work: Work, images: torch.Tensor) -> dict:
    """What is measured of images (N, C, H, W) in [0, 1]: "bits_per_dim", "reconstruction_error", and "nfe"."""
    pipe = model.pipeline(work)
    # The noise that bounds the likelihood of a network tighter: docs/bits_per_dim.md
    noise = "truncated_normal" if pipe.unet.config.get("pixel_levels") else "uniform"
    output = pipe.bits_per_dim(
        images, torch.Generator().manual_seed(0), dequantize=noise, rtol=TOLERANCE, atol=TOLERANCE
    )
    errors = reconstruction_errors(pipe, images)
    return {"bits_per_dim": output.bits_per_dim, "reconstruction_error": errors, "nfe": output.nfe + DRAWS}


def reconstruction_errors(pipe, images: torch.Tensor) -> torch.Tensor:
    """How far E[x_0 | x_t] is from images (N, C, H, W) in [0, 1]: (N,), the root mean square with images in [-1, 1].

    t is the time at which the noise is `NOISE`. What an image shows is mostly gone there, so that one unlike those
    that the model learnt comes back as something else.
    """
    sde, parameterization = pipe.scheduler.sde, pipe.scheduler.parameterization
    low, high = parameterization.image_range
    half = (high - low) / 2
    t = sde.inverse_half_log_snr(-torch.tensor(NOISE * half, dtype=torch.float64).log())
    x_0 = parameterization.to_model_range(images).to(pipe.device)
    noises = torch.randn(DRAWS, 1, *x_0.shape[1:], generator=torch.Generator().manual_seed(0)).to(x_0)
    squares = torch.zeros(len(x_0)).to(x_0)
    for noise in noises:
        x_t = sde.alpha(t).item() * x_0 + sde.sigma(t).item() * noise
        squares += ((pipe.denoise(x_t, t) - x_0) / half).square().mean((1, 2, 3)) / DRAWS
    return squares.sqrt()


NO_TESTS = (
    "There is no histogram for this model: the bits/dim of test images under it were not computed "
    "(`python space_app/make_model_data.py PIPELINE` does that for models of Fashion-MNIST)."
)
WHY = (
    "Likelihood is not typicality: it is the density at this one image, and says nothing of how many images there are "
    "like it. An image that is black all over was measured as likelier than 19 of 20 garments, and images of other "
    "things can be as likely as garments are."
)


def place(value: float, tests: list[float]) -> str:
    """Where a value of bits/dim lies among those of the test images, in words."""
    below, many = bisect.bisect_left(sorted(tests), value) / len(tests), f"{len(tests):,}"
    low, high = np.quantile(tests, [0.01, 0.99])
    if value > high:
        said = f"**Less likely than typical test images**: fewer than one in a hundred of {many} need as many bits."
    elif value < low:
        said = f"**Likelier than typical test images**: fewer than one in a hundred of {many} need as few bits."
    else:
        said = f"**As likely as typical test images**: {below:.0%} of {many} are more likely, {1 - below:.0%} less."
    return f"{said} {WHY}"


def error_place(error: float, tests: list[float] | None) -> str:
    """What the reconstruction error is and, beside that of test images, says."""
    said = (
        "A second look, which counts no bits: noise is added, twice as strong as the way from grey to white, and the "
        f"model says what was there. It is off by {error:.2f} (the reconstruction error)."
    )
    if tests is None:
        return said
    low, high = np.quantile(tests, [0.01, 0.99])
    comes_back = "as typical test images do"
    if not low <= error <= high:
        comes_back = f"**changed {'more' if error > high else 'less'} than typical test images**"
    return f"{said} For 98 of 100 test images that is {low:.2f} to {high:.2f}, so this one comes back {comes_back}."


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
    tests = model.test_scores and model.test_scores["bits_per_dim"]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = picture_input(
                value=example_files[0] if example_files else None, label="Image", elem_id="likelihood-image"
            )
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Measure", variant="primary", scale=3)
                stop = gr.Button("Stop", scale=1)
                another = gr.Button("Random", scale=2)
            show_what_is_seen(image, model)
        with gr.Column(scale=3, min_width=300, elem_classes="results"):
            status = status_line(
                "How many bits does the model need for each number of the image (bits/dim)? Fewer means more likely."
                if tests
                else NO_TESTS
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
