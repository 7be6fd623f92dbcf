"""Watch: an image turns into noise, and noise into an image, under three SDEs with one network."""

import json
from functools import partial

import gradio as gr
import torch
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, random_on, stop_on
from pictures import (
    checked_seed,
    picture_input,
    read_picture,
    seconds,
    show_what_is_seen,
    status_line,
    visible_states,
)
from results import Result, download_button, file_name, finished, remember, result_gallery, while_forming
from served_model import ServedModel

SDES = {"VE": "ve", "VP": "vp", "sub-VP": "sub_vp"}
COLUMNS = 9
STEPS_BETWEEN = 6  # columns
STRIP_WIDTH = 1000  # pixels of a strip at least: a wide screen's
VIEWS = {"One time": False, "All times": True}
BACK = {
    "Probability flow ODE": {"eta": 0.0, "solver_order": 3},
    "Reverse-time SDE": {"eta": 1.0, "solver_order": 2},
}


def watch(model: ServedModel, path, back, seed):
    """The work that shows three strips, as they are made; what is still to come is grey.

    Each has two rows, with t from 0 on the left to 1 on the right. In the first, the image becomes noise; the second
    shows the way back, from right to left and from other noise, so that it ends at another image.

    Args:
        path: of the image.
        back: of `BACK`.
        seed: of all noise.
    """
    image, seed = read_picture(path, model.image_shape, model.pixels), checked_seed(seed)
    strips = [torch.full_like(image[0], 0.5).repeat(1, 2, COLUMNS)] * len(SDES)
    reached = [1.0]

    def compute(work):
        work.parts = len(SDES)

        def put(tiles, t):
            strips[work.part], reached[0] = tiles, t

        for work.part, name in enumerate(SDES.values()):
            strip(model, work, image, name, BACK[back], seed, put)
        return 3 * ((COLUMNS - 1) * STEPS_BETWEEN + 1)

    def results():
        words = back, "seed", seed
        return [
            Result(tiles, name, file_name("watch", name, *words), STRIP_WIDTH)
            for name, tiles in zip(SDES, strips, strict=True)
        ]

    def show_state(work):
        return [*while_forming(results(), work.share), reached[0]]

    def show(work):
        gallery, download = finished(results(), file_name("watch", back, "seed", seed))
        status = f"**{work.result}** evaluations of the network in all · **{seconds(work.seconds)}**"
        return gallery, f"{status} · tap a strip to enlarge it", download, 0

    return Work(compute, show, show_state)


def strip(model: ServedModel, work: Work, image: torch.Tensor, sde: str, settings: dict, seed: int, put) -> None:
    """`put` the two rows of one SDE, and the t that the way back has reached; before that its places are grey."""
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
            rows = [torch.cat(row, dim=2) for row in (forward, grey + returned[::-1])]
            put(torch.cat(rows, dim=1), len(grey) / (COLUMNS - 1))

    def keep(pipe, k, t, values):
        see(k + 1, values["latents"])
        return {}

    see(0, latents * scheduler.init_noise_sigma)
    pipe = model.pipeline(work, scheduler)
    pipe(1, steps, latents=latents, generator=generator, output_type="latent", callback_on_step_end=keep)


def build(model: ServedModel, history: gr.Gallery, random_picture, example_files: list[str]) -> None:
    """The tab's components; its results are put into `history`, too. For the other arguments see `app.py`."""
    show = partial(watch, model)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = picture_input(
                value=example_files[0] if example_files else None, label="Image", elem_id="watch-image"
            )
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Watch", variant="primary", scale=3)
                stop = gr.Button("Stop", scale=1)
                another = gr.Button("Random", scale=2)
            show_what_is_seen(image, model)
            back = gr.Radio(
                [*BACK],
                value=[*BACK][0],
                label="Way back",
                info="The ODE goes the same way each time, the SDE adds fresh noise on it",
            )
            seed = gr.Number(value=0, label="Seed", info="The number that all noise here comes from")
        with gr.Column(scale=3, min_width=300, elem_classes="results"):
            status = status_line("Press *Watch*: your image becomes noise, and other noise an image.")
            with gr.Row(elem_classes="time"):
                time = gr.Slider(0, 1, 0, step=1 / (COLUMNS - 1), label="Time t", info="0: images, 1: noise", scale=3)
                view = gr.Radio([*VIEWS], value=[*VIEWS][0], label="View", scale=2)
            gallery = result_gallery("Strips", "strips")
            download = download_button()
            gr.Markdown(
                "Above: your image becomes noise as t goes from 0 to 1, under three SDEs: in VE noise is added, in VP "
                "and sub-VP the image fades, too. Below: from t = 1 to 0 the network leads other noise to an image. "
                "Each state is shown divided by its scale.",
                elem_classes="status",
            )
    inputs, outputs = [image, back, seed], [gallery, status, download, time]
    remember(compute_on(start.click, show, inputs, outputs, "watch"), gallery, history)
    stop_on(stop.click, "watch", "watch_example")
    random_on(another.click, random_picture, [image], "random_start")
    time.change(None, time, None, js=f"t => showTime(t, {COLUMNS})", api_visibility="private")
    all_times = json.dumps(VIEWS)
    view.change(
        None,
        view,
        None,
        js=f"view => {{ document.body.classList.toggle('all-times', {all_times}[view]); }}",
        api_visibility="private",
    )
    if example_files:
        shown = gr.Examples(
            [[file, way, 0] for file, way in zip(example_files, BACK, strict=False)],
            inputs,
            api_visibility="private",
            elem_id="watch-examples",
        )
        example = compute_on(shown.load_input_event.then, show, inputs, outputs, "watch_example", **ON_EXAMPLE)
        remember(example, gallery, history)
