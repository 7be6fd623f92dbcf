"""One step: images of a consistency model, drawn anew while the seed is moved."""

from functools import partial

import gradio as gr
from bounded_work import Work
from door import compute_on
from pictures import checked_seed, generators, seconds, whole_number
from results import Result, file_name, gallery_items, result_gallery
from served_model import ServedModel

ANY = "Any class"
IMAGES, LARGEST_SEED, EVALUATIONS = 8, 1000, 2
FIRST_SETTINGS = (ANY, "1", 0)  # class, evaluations and seed that the page begins with


def one_step(model: ServedModel, class_name, evaluations, seed):
    """The work that shows images, each with its seed.

    Args:
        class_name: of the model's classes; any other name is no class.
        evaluations: of the network for each image.
        seed: of the first image; the others have those that follow.
    """
    evaluations, seed = whole_number("Evaluations", int(evaluations), 1, EVALUATIONS), checked_seed(seed)
    own = model.pipe.scheduler
    scheduler = type(own).from_config(own.config)

    def compute(work):
        pipe = model.pipeline(work, scheduler)
        label = model.labels(class_name)
        return pipe(IMAGES, evaluations, class_labels=label, generator=generators(seed, IMAGES), output_type="pt")

    def show(work):
        images = with_seeds(work.result.images, seed)
        times = "evaluation" if work.result.nfe == 1 else "evaluations"
        return images, f"**{work.result.nfe}** {times} of the network for each image · **{seconds(work.seconds)}**"

    return Work(compute, show)


def with_seeds(images, seed: int) -> list:
    """Images (N, C, H, W), the first of which has this seed, as a gallery takes them."""
    names = [f"seed {seed + k}" for k in range(len(images))]
    return gallery_items([Result(image, name, file_name(name)) for image, name in zip(images, names, strict=True)])


def build(model: ServedModel) -> None:
    """The page's components."""
    gr.Markdown(
        f"# Images in one step\n**{model.name}** is a consistency model ([paper](https://arxiv.org/abs/2303.01469)): "
        "from noise to an image it asks its network once, where others ask tens of times. Move the seed.",
        elem_id="title",
    )
    first_class, first_evaluations, first_seed = FIRST_SETTINGS
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            class_name = gr.Dropdown(
                [ANY, *model.class_names], value=first_class, label="Class", visible=bool(model.class_names)
            )
            evaluations = gr.Radio(["1", "2"], value=first_evaluations, label="Evaluations")
            seed = gr.Slider(0, LARGEST_SEED, value=first_seed, step=1, label="Seed of the first image")
            draw = gr.Button("Draw", variant="primary")
        with gr.Column(scale=3, min_width=300):
            first = None if model.drawn is None else with_seeds(model.drawn[0], first_seed)
            gallery = result_gallery("Images", "drawn-at-once", first)
            status = gr.Markdown("Move the seed, or press *Draw*.", label="status", elem_classes="status")
    inputs, outputs, work = [class_name, evaluations, seed], [gallery, status], partial(one_step, model)
    compute_on(draw.click, work, inputs, outputs, "one_step")
    # Of each kind one event is under way, and others that come meanwhile are left out; what is let go of is drawn.
    for event, name in ((seed.change, "moved"), (seed.release, "let_go"), (class_name.change, "class")):
        compute_on(event, work, inputs, outputs, f"one_step_{name}", api_visibility="private")
    compute_on(evaluations.change, work, inputs, outputs, "one_step_evaluations", api_visibility="private")
