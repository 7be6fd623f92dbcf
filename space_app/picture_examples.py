"""Examples that show what comes of them: a picture for each choice of settings."""

import gradio as gr
import torch
from pictures import picture_file, to_picture
from results import file_name
from torch import Tensor

SHOWN = 4  # images of an example


def picture_examples(settings: dict[str, list], rows: Tensor | None, inputs: list, elem_id: str):
    """Rows to choose from, each with its picture and name; the event of a choice that has set `inputs`.

    Args:
        settings: the inputs' values by their names.
        rows: (examples, N, C, H, W) images of each, or None: then there are names only.
    """
    names = [*settings]
    if rows is None:
        components, samples = [gr.Markdown(render=False)], [[name] for name in names]
    else:
        components = [gr.Image(render=False, label="Images"), gr.Markdown(render=False, label="Settings")]
        samples = [[strip_file(row, name), name] for row, name in zip(rows, names, strict=True)]
    dataset = gr.Dataset(
        label="Examples",
        components=components,
        samples=samples,
        type="index",
        elem_id=elem_id,
        elem_classes="examples",
        **({"sample_labels": names} if rows is None else {"headers": ["Images", "Settings"]}),
    )
    values = [*settings.values()]
    return dataset.click(lambda k: values[k], dataset, inputs, api_visibility="private", show_progress="hidden")


def strip_file(images: Tensor, name: str) -> str:
    """A picture of the first and last images and some between them, side by side."""
    chosen = torch.linspace(0, len(images) - 1, SHOWN).round().long()
    picture = to_picture(torch.cat([*images[chosen]], dim=2))
    return picture_file(picture, file_name(name))
