"""Generate: images that appear while they form."""

import json
import random
from functools import partial

import gradio as gr
from bounded_work import Work
from door import ON_EXAMPLE, compute_on, stop_on
from pictures import checked_seed, friendly, generators, number_input, seconds, to_picture, whole_number
from served_model import DEFAULT_SAMPLER, ODE_SAMPLER, SAMPLERS, ServedModel

MAX_IMAGES, MAX_STEPS, MAX_GUIDANCE = 16, 200, 8
ANY = "Any class"
FIRST_IMAGES = 8
# Of the image that is enlarged, or else of the first: its seed, no new one, and one image.
KEEP_SEED = """(...settings) => {
    const captions = [...document.querySelectorAll("#generated .caption, #generated .caption-label")];
    const seed = captions.length && captions[0].textContent.match(/seed (\\d+)/);
    return seed ? [Number(seed[1]), false, 1] : settings;
}"""


def generate(model: ServedModel, class_name, sampler, steps, guidance, count, seed, new_seed=False):
    """The work that shows captioned pictures while they form, and at last the images.

    Args:
        class_name: of the model's classes; any other name is no class.
        sampler: of `SAMPLERS`.
        steps, guidance, count: see the limits above.
        seed: of the first image; the others have those that follow.
        new_seed: take a random one instead.
    """
    steps, count = whole_number("Steps", steps, 1, MAX_STEPS), whole_number("Images", count, 1, MAX_IMAGES)
    seed = random.randrange(10_000) if new_seed else checked_seed(seed)
    label = model.labels(class_name)
    if label is None and guidance != 1:
        raise friendly("Guidance other than 1 leads towards a class: choose one.")
    scheduler = model.scheduler(sampler)

    def compute(work):
        return model.pipeline(work, scheduler)(
            count,
            steps,
            class_labels=label,
            guidance_scale=guidance,
            generator=generators(seed, count),
            output_type="pt",
        )

    def show_state(work):
        return [captioned(work.picture, seed)]

    def show(work):
        output = work.result
        status = f"**{output.nfe}** evaluations of the network for each image · **{seconds(work.seconds)}**"
        return captioned(output.images, seed), status + " · tap an image to enlarge it"

    return Work(compute, show, show_state)


def build(model: ServedModel, first_images) -> None:
    """The tab's components.

    Args:
        first_images: what is seen before the first click, (N, C, H, W) of the seeds 0, 1, ..., or None.
    """
    draw = partial(generate, model)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            class_name = gr.Dropdown(
                [ANY, *model.class_names], value=ANY, label="Class", visible=bool(model.class_names)
            )
            sampler = gr.Dropdown([*SAMPLERS], value=DEFAULT_SAMPLER, label="Sampler")
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Generate", variant="primary", scale=3)
                stop = gr.Button("Stop", scale=1)
            with gr.Accordion("Steps, guidance, seed", open=False):
                steps = number_input("Steps", 1, MAX_STEPS, SAMPLERS[DEFAULT_SAMPLER][2])
                guidance = number_input(
                    "Guidance",
                    0,
                    MAX_GUIDANCE,
                    1,
                    step=0.1,
                    info="Above 1: more typical of the class, less diverse",
                    visible=bool(model.class_names),
                )
                count = number_input("Images", 1, MAX_IMAGES, FIRST_IMAGES)
                new_seed = gr.Checkbox(value=True, label="New seed each time")
                seed = gr.Number(value=0, precision=None, label="Seed of the first image")
        with gr.Column(scale=3, min_width=300):
            gallery = gr.Gallery(
                None if first_images is None else captioned(first_images, 0),
                label="Images",
                show_label=False,
                format="png",
                object_fit="contain",
                buttons=["download"],
                elem_classes="pictures",
                elem_id="generated",
                interactive=False,
            )
            status = gr.Markdown(
                "Press *Generate* and watch images form out of noise.", label="status", elem_classes="status"
            )
            keep = gr.Button("Keep this seed", size="sm")
    inputs, outputs = [class_name, sampler, steps, guidance, count, seed, new_seed], [gallery, status]
    compute_on(start.click, draw, inputs, outputs, "generate")
    stop_on(stop.click, "generate", "generate_example")
    steps_of = json.dumps({name: steps for name, (_, _, steps) in SAMPLERS.items()})
    sampler.change(None, sampler, steps, js=f"name => ({steps_of})[name]", api_visibility="private")
    keep.click(None, [seed, new_seed, count], [seed, new_seed, count], js=KEEP_SEED, api_visibility="private")

    classes = model.class_names
    if classes:
        examples = {
            f"{classes[-1]}, 20 steps": [classes[-1], DEFAULT_SAMPLER, 20, 1, 8, 1, False],
            f"{classes[0]}, guidance 3": [classes[0], ODE_SAMPLER, 10, 3, 8, 2, False],
            f"{classes[len(classes) // 2]}, ancestral": [classes[len(classes) // 2], "Ancestral", 50, 1, 8, 3, False],
        }
        shown = gr.Examples(
            [*examples.values()],
            inputs,
            api_visibility="private",
            example_labels=[*examples],
            elem_id="generate-examples",
        )
        compute_on(shown.load_input_event.then, draw, inputs, outputs, "generate_example", **ON_EXAMPLE)


def captioned(images, seed: int) -> list:
    """Images (N, C, H, W) as a gallery shows them, each with its seed."""
    return [(to_picture(image), f"seed {seed + k}") for k, image in enumerate(images)]
