"""What a page gives to take away: pictures with telling names, all of them in a zip, and those of earlier clicks."""

import io
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr
from pictures import SHOWN_SIZE, kept_file, picture_file, to_picture
from torch import Tensor

KEPT = 24  # pictures of earlier results
ADD_TO_HISTORY = f"""(gallery, history) => {{
    const all = [...(gallery ?? []), ...(history ?? [])];
    const paths = all.map(item => item.image.path);
    const news = all.filter((item, k) => paths.indexOf(item.image.path) === k).slice(0, {KEPT});
    const words = item => (item.image.orig_name ?? "").replace(/\\.png$/, "").replaceAll("-", " ");
    return [news.map(item => ({{ ...item, caption: words(item) }}))];
}}"""
ENABLE = "archive => ({ __type__: 'update', interactive: Boolean(archive) })"


@dataclass(frozen=True)
class Result:
    """An image (C, H, W), uint8 or in [0, 1], what stands below it, what its file is called, and its enlarged size."""

    image: Tensor
    caption: str
    name: str
    size: int = SHOWN_SIZE


def file_name(*words) -> str:
    """Words as one name: "T-shirt/top", "seed 3", "guidance 1.5" -> "t-shirt-top-seed-3-guidance-1.5"."""
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(map(str, words)).lower().replace("%", " percent")).strip("-.")


def with_seeds(images, seed: int, *words) -> list[Result]:
    """Images (N, C, H, W), the first of which has this seed; `words` for the names of their files."""
    first, *others = words
    return [
        Result(image, f"seed {seed + k}", file_name(first, "seed", seed + k, *others))
        for k, image in enumerate(images)
    ]


def gallery_items(results: list[Result]) -> list[tuple[Path, str]]:
    """What a gallery shows: files that a visitor keeps under these names, enlarged, and captions."""
    return [(Path(picture_file(to_picture(r.image, size=r.size), r.name)), r.caption) for r in results]


def archive(results: list[Result], name: str) -> str:
    """A zip file of all, in native size and enlarged."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as files:
        for result in results:
            for folder, size in (("native-size", 1), ("enlarged", result.size)):
                picture = io.BytesIO()
                to_picture(result.image, size=size).save(picture, "PNG")
                files.writestr(f"{folder}/{result.name}.png", picture.getvalue())
    return kept_file(buffer.getvalue(), f"{name}.zip")


def while_forming(results: list[Result], share: float) -> list:
    """The values of gallery and download button before the end, when this share of the work is done.

    Whoever keeps such a picture has stopped there, and it is called so.
    """
    return [gallery_items([replace(r, name=file_name(r.name, f"stopped at {share:.0%}")) for r in results]), None]


def finished(results: list[Result], name: str) -> list:
    """The same at the end."""
    return [gallery_items(results), archive(results, name)]


def result_gallery(label: str, elem_id: str, value=None) -> gr.Gallery:
    """Pictures with captions below them; a click enlarges one."""
    return gr.Gallery(
        value,
        label=label,
        show_label=False,
        object_fit="contain",
        format="png",
        buttons=["download"],
        elem_classes="pictures",
        elem_id=elem_id,
        interactive=False,
    )


def download_button() -> gr.DownloadButton:
    """Of all pictures of a result; it can be pressed once there is one."""
    button = gr.DownloadButton("Download all (zip)", size="sm", interactive=False, elem_classes="download")
    button.change(None, button, button, js=ENABLE, api_visibility="private")
    return button


def earlier_results() -> gr.Gallery:
    """The pictures of earlier clicks, in the browser's memory; their files go with the visitor's others."""
    return result_gallery("Earlier results", "history")


def remember(event, gallery: gr.Gallery, history: gr.Gallery) -> None:
    """After an event that filled `gallery`, put its pictures before those of `history`."""
    event.success(None, [gallery, history], history, js=ADD_TO_HISTORY, api_visibility="private")
