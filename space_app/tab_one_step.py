"""One step: images of a consistency model, drawn anew while the seed is moved."""

from functools import partial

import gradio as gr
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, stop_on
from picture_examples import picture_examples
from pictures import checked_seed, counted, generators, seconds, status_line, whole_number
from results import (
    download_button,
    file_name,
    finished,
    gallery_items,
    remember,
    result_gallery,
    while_forming,
    with_seeds,
)
from served_model import ANY, ServedModel

IMAGES, LARGEST_SEED, EVALUATIONS = 8, 1000, 2


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

    words = class_name, counted(evaluations)

    def show_state(work):
        return while_forming(with_seeds(work.picture, seed, *words), work.share)

    def show(work):
        status = f"**{counted(work.result.nfe)}** of the network for each image · **{seconds(work.seconds)}**"
        gallery, download = finished(with_seeds(work.result.images, seed, *words), file_name(*words, "seed", seed))
        return gallery, f"{status} · tap an image to enlarge it", download

    return Work(compute, show, show_state)


def first_settings(model: ServedModel) -> list:
    """What the page begins with, in the order of `one_step`."""
    return [model.class_choices[0], "1", 0]


def example_settings(model: ServedModel) -> dict[str, list]:
    """The examples by their names, in the order of `one_step`."""
    examples = {"any class, 2 evaluations": [ANY, "2", 0]} if model.without_class else {}
    if model.classes:
        first, last = model.class_names[0], model.class_names[-1]
        examples |= {f"{last}, 1 evaluation": [last, "1", 1], f"{first}, 2 evaluations": [first, "2", 2]}
    return examples


def build(model: ServedModel, history: gr.Gallery) -> None:
    """The page's components; its results are put into `history`, too."""
    gr.Markdown(
        f"# Images in one step\n**{model.name}** is a consistency model ([paper](https://arxiv.org/abs/2303.01469)): "
        f"from noise to an image it asks its network once, where others ask tens of times. {model.about}",
        elem_id="title",
    )
    first_class, first_evaluations, first_seed = first_settings(model)
    examples = example_settings(model)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            class_name = gr.Dropdown(
                model.class_choices,
                value=first_class,
                label="Class",
                info="What the images shall show",
                visible=bool(model.classes),
            )
            evaluations = gr.Radio(
                ["1", "2"],
                value=first_evaluations,
                label="Evaluations",
                info="How often the network is asked: once, or again after some noise was added to its first answer",
            )
            seed = gr.Slider(
                0,
                LARGEST_SEED,
                value=first_seed,
                step=1,
                label="Seed of the first image",
                info="The number that the noise comes from: the same one draws the same image. Move it",
            )
            with gr.Row(elem_classes="buttons"):
                draw = gr.Button("Draw", variant="primary", scale=3)
                stop = gr.Button("Stop", scale=1)
        with gr.Column(scale=3, min_width=300, elem_classes="results"):
            words = first_class, counted(int(first_evaluations))
            first = None if model.drawn is None else gallery_items(with_seeds(model.drawn[0], first_seed, *words))
            gallery = result_gallery("Images", "drawn-at-once", first)
            status = status_line("Move the seed, or press *Draw*.")
            download = download_button()
    inputs, outputs, work = [class_name, evaluations, seed], [gallery, status, download], partial(one_step, model)
    remember(compute_on(draw.click, work, inputs, outputs, "one_step"), gallery, history)
    # Of each kind one event is under way, and others that come meanwhile are left out; what is let go of is drawn, and
    # remembered, as what passes by is not.
    here = {"api_visibility": "private", "js": None}  # the page stays where it is
    compute_on(seed.input, work, inputs, outputs, "one_step_moved", **here)
    names = ["one_step", "one_step_moved", "one_step_example"]
    for name, event in {"let_go": seed.release, "class": class_name.input, "evaluations": evaluations.input}.items():
        names.append(f"one_step_{name}")
        remember(compute_on(event, work, inputs, outputs, names[-1], **here), gallery, history)
    stop_on(stop.click, *names)
    rows = None if model.drawn is None else model.drawn[1:]
    chosen = picture_examples(examples, rows, inputs, "one-step-examples")
    example = compute_on(chosen.then, work, inputs, outputs, "one_step_example", **ON_EXAMPLE)
    remember(example, gallery, history)
