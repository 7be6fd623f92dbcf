"""Watch: an image turns into noise, and noise into an image, under three SDEs with one network."""

from functools import partial

import gradio as gr
import torch
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, random_on, stop_on
from pictures import checked_seed, picture_input, read_picture, seconds, to_picture, visible_states
from PIL import Image
from served_model import ServedModel

SDES = {"VE: variance exploding": "ve", "VP: variance preserving": "vp", "sub-VP": "sub_vp"}
COLUMNS = 9
STEPS_BETWEEN = 6  # columns
BACK = {
    "Probability flow ODE": {"eta": 0.0, "solver_order": 3},
    "Reverse-time SDE": {"eta": 1.0, "solver_order": 2},
}


def watch(model: ServedModel, path, back, seed):
    """The work that shows three strips, as they are made.

    Each has two rows. In the first, t goes from 0 to 1 and the image becomes noise; the second shows the way back
    at the same times, from other noise, so that it ends at another image.

    Args:
        path: of the image.
        back: of `BACK`.
        seed: of all noise.
    """
    image, seed = read_picture(path, model.image_shape, model.pixels), checked_seed(seed)
    strips = [None] * len(SDES)
    sent = [*strips]

    def compute(work):
        work.parts = len(SDES)
        for work.part, name in enumerate(SDES.values()):
            strip(model, work, image, name, BACK[back], seed, partial(strips.__setitem__, work.part))
        return 3 * ((COLUMNS - 1) * STEPS_BETWEEN + 1)

    def show_state(work):
        # Each only once: a browser would meanwhile be reading the file that the same picture is written to again.
        news = [gr.skip() if strip is known else strip for strip, known in zip(strips, sent, strict=True)]
        sent[:] = strips
        return news

    def show(work):
        return *strips, f"**{work.result}** evaluations of the network in all · **{seconds(work.seconds)}**"

    return Work(compute, show, show_state)


def strip(model: ServedModel, work: Work, image: torch.Tensor, sde: str, settings: dict, seed: int, put) -> None:
    """`put` the two rows of one SDE, again with each state that the way back reaches; until then its place is grey."""
    scheduler = model.scheduler("Probability flow ODE, few steps", sampling_sde=sde, time_grid="uniform", **settings)
    steps = (COLUMNS - 1) * STEPS_BETWEEN + 1  # the last one leads to x_0
    scheduler.set_timesteps(steps)
    times = [*scheduler.times, torch.tensor(scheduler.sde.smallest_time, dtype=torch.float64)]
    shown = [*range(0, steps, STEPS_BETWEEN)][: COLUMNS - 1] + [steps]
    generator = torch.Generator().manual_seed(seed)
    noise, latents = torch.randn(2, 1, *model.image_shape, generator=generator)
    x_0 = scheduler.parameterization.to_model_range(image)
    forward, returned = [], []
    for k in reversed(shown):
        t = times[k]
        x = scheduler.sde.alpha(t).item() * x_0 + scheduler.sde.sigma(t).item() * noise
        forward.append(visible_states(x, scheduler, t)[0])

    def see(k, x):
        if k in shown:
            returned.append(visible_states(x, scheduler, times[k])[0].cpu())
            grey = [torch.full_like(forward[0], 0.5)] * (len(shown) - len(returned))
            put(enlarged(torch.cat([torch.cat(row, dim=2) for row in (forward, returned + grey)], dim=1)))

    def keep(pipe, k, t, values):
        see(k + 1, values["latents"])
        return {}

    see(0, latents * scheduler.init_noise_sigma)
    pipe = model.pipeline(work, scheduler)
    pipe(1, steps, latents=latents, generator=generator, output_type="latent", callback_on_step_end=keep)


def enlarged(tiles: torch.Tensor) -> Image.Image:
    """A picture of many tiles, large enough for a wide screen."""
    picture = to_picture(tiles)
    factor = max(1, round(1000 / picture.width))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def build(model: ServedModel, random_picture, example_files: list[str]) -> None:
    """The tab's components; for the arguments see `app.py`."""
    show = partial(watch, model)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = picture_input(
                value=example_files[0] if example_files else None, label="Image", elem_id="watch-image"
            )
            back = gr.Radio([*BACK], value=[*BACK][0], label="Way back")
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Watch", variant="primary", scale=3)
                stop = gr.Button("Stop", scale=1)
                another = gr.Button("Random", scale=2)
            seed = gr.Number(value=0, label="Seed of the noise")
        with gr.Column(scale=3, min_width=300):
            gr.Markdown(
                "Upper row: your image becomes noise, t from 0 to 1. Lower row: other noise becomes an image, t from "
                "1 to 0. One network does all three. Each state is shown divided by its scale.",
                label="status",
                elem_classes="status",
            )
            strips = []
            for name in SDES:
                gr.Markdown(f"**{name}**")
                picture = gr.Image(
                    label=name, show_label=False, format="png", interactive=False, buttons=[], elem_classes="strip"
                )
                strips.append(picture)
            status = gr.Markdown(label="status", elem_classes="status")
    inputs, outputs = [image, back, seed], [*strips, status]
    compute_on(start.click, show, inputs, outputs, "watch")
    stop_on(stop.click, "watch", "watch_example")
    random_on(another.click, random_picture, [image], "random_start")
    if example_files:
        shown = gr.Examples(
            [[file, way, 0] for file, way in zip(example_files, BACK, strict=False)],
            inputs,
            api_visibility="private",
            example_labels=[*BACK],
            elem_id="watch-examples",
        )
        compute_on(shown.load_input_event.then, show, inputs, outputs, "watch_example", **ON_EXAMPLE)
