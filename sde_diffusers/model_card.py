"""The card of a model's repository (README.md): metadata by which the Hub finds it, what it is, how to use it.

A card says only what the repository's files and its author say.
"""

import json
import math
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard
from safetensors import safe_open

from sde_diffusers.saved_folders.repository import read_object
from sde_diffusers.scalars import real_number
from sde_diffusers.sdes.gaussian import GaussianSDE

TASK = "unconditional-image-generation"
CARD_TAGS = ("score-sde", "image-generation")
SAMPLES_FILE = "samples.png"
GENERATED = "<!-- Generated. Without this line the text stays as it is when the model is pushed again. -->"
WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.(?P<variant>.+?))?(?:-\d+-of-\d+)?\.safetensors")
WEIGHTS_INDEX = re.compile(r"diffusion_pytorch_model\.safetensors\.index(?:\.(?P<variant>.+))?\.json")

CARD_WORDS = {
    "license": re.compile(r"[a-z0-9][a-z0-9.+-]*"),
    "datasets": re.compile(r"[\w.-]+(/[\w.-]+)?"),
    "tags": re.compile(r"\S(.*\S)?"),
}
CARD_EXAMPLES = {"license": '"apache-2.0"', "datasets": '"owner/name"', "tags": '"image-generation"'}


def is_integer(value) -> bool:
    """Whether a value of a JSON file is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value) -> bool:
    """Whether a value of a JSON file is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def are_two(value, rule) -> bool:
    """Whether a value of a JSON file is a list of two that follow a rule."""
    return isinstance(value, list) and len(value) == 2 and all(map(rule, value))


# What a card says of configurations, which may come from anywhere: {file: {key: (what is allowed, rule)}}.
NETWORK_VALUES = {
    "_class_name": ("the name of a class", lambda value: isinstance(value, str)),
    "in_channels": ("an integer of at least 1", is_integer),
    "sample_size": (
        "a side, [height, width] or null",
        lambda value: value is None or is_integer(value) or are_two(value, is_integer),
    ),
    "num_class_embeds": ("an integer of at least 1 or null", lambda value: value is None or is_integer(value)),
    "class_names": (
        "a list of names or null",
        lambda value: value is None or isinstance(value, list) and all(isinstance(name, str) for name in value),
    ),
    "value_range": ("[low, high] or null", lambda value: value is None or are_two(value, is_number)),
}
SCHEDULER_VALUES = {"sde": ("the name of an SDE or null", lambda value: value is None or isinstance(value, str))}
CARD_VALUES = {"unet/config.json": NETWORK_VALUES, "scheduler/scheduler_config.json": SCHEDULER_VALUES}


class HandwrittenCardError(ValueError):
    """A description for a card that was written by hand."""


def check_card_words(
    license: str | None = None,
    datasets: list[str] | None = None,
    tags: list[str] | None = None,
    description: str | None = None,
) -> None:
    """Raise a `ValueError` on what is no text, or list of texts, and on words that are no identifiers of the Hub."""
    for name, text in {"license": license, "description": description}.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(f"`{name}` must be a string, but is {text!r}.")
    for name, value in {"datasets": datasets, "tags": tags}.items():
        listed = isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)
        if value is not None and not listed:
            raise ValueError(f"`{name}` must be a list of strings, but is {value!r}.")
    words = {"license": [license] if license else [], "datasets": datasets or [], "tags": tags or []}
    for name, given_words in words.items():
        for word in given_words:
            if not CARD_WORDS[name].fullmatch(word):
                raise ValueError(f"`{name}` must be such as the Hub has, {CARD_EXAMPLES[name]}, but is {word!r}.")


def model_card(
    folder: str | Path,
    repo_id: str,
    license: str | None = None,
    datasets: list[str] | None = None,
    tags: list[str] | None = None,
    metrics: dict[str, float] | None = None,
    description: str | None = None,
    samples: bool = False,
    earlier: ModelCard | None = None,
) -> ModelCard:
    """The card of a saved pipeline.

    Args:
        folder: of the pipeline.
        repo_id: name that the card tells its readers to load.
        license: identifier of the Hub, such as "apache-2.0".
        datasets: ids of the data sets that the model was trained on.
        tags: in addition to `CARD_TAGS`.
        metrics: {name: value} measured on the first of `datasets`, for the card's model index.
        description: a paragraph of Markdown: how it was trained, what its classes are, its limits.
        samples: whether the repository has the picture `SAMPLES_FILE`.
        earlier: a card that exists already. Unless it was generated its text is kept, and so is all its metadata for
            which no new value is given.

    Raises:
        ValueError: on a metric that is no finite number, or without a data set that it was measured on; on one string
            in the place of several; on words that are no identifiers of the Hub; on a description for a card that was
            written by hand; on configurations in the folder that hold values of other kinds.
    """
    check_card_words(license, datasets, tags, description)
    if description is not None and earlier is not None and GENERATED not in earlier.text:
        raise HandwrittenCardError(
            "`description` is for a card that is generated, but this README.md was written by hand."
        )
    for path, rules in CARD_VALUES.items():
        if (Path(folder) / path).is_file():
            check_values(Path(folder) / path, rules)
    given = {"license": license, "datasets": datasets}
    given = {key: value for key, value in given.items() if value}
    if results := evaluation_results(metrics, datasets):
        given["eval_results"] = results
    card = earlier
    if card is None or GENERATED in card.text:
        text = card_text(Path(folder), repo_id, description, samples)
        data = (
            ModelCardData(library_name="diffusers", pipeline_tag=TASK, tags=list(CARD_TAGS))
            if card is None
            else card.data
        )
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    if tags:
        given["tags"] = list(dict.fromkeys([*(card.data.tags or CARD_TAGS), *tags]))
    for key, entry in given.items():
        setattr(card.data, key, entry)
    if card.data.eval_results and not card.data.model_name:
        card.data.model_name = repo_id.split("/")[-1]
    return card


def read_card(path: str | Path, kind: type[RepoCard] = ModelCard) -> RepoCard:
    """The card in a file.

    Raises:
        ValueError: if its metadata cannot be read.
    """
    try:
        return kind.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The metadata of {path} cannot be read: {error}") from error


def preferred_card(own: ModelCard | None, remote: ModelCard | None) -> ModelCard | None:
    """A folder's card, or the Hub's where there is none; in a generated one, a text written by hand on the Hub."""
    if own is None or remote is None:
        return own or remote
    if GENERATED in own.text:
        if GENERATED not in remote.text:
            own.text = remote.text
        for key, value in vars(remote.data).items():
            if getattr(own.data, key, None) is None:
                setattr(own.data, key, value)
    return own


def evaluation_results(metrics: dict[str, float] | None, datasets: list[str] | None) -> list[EvalResult]:
    """Metrics as the Hub's model index wants them; see `model_card` for what is refused."""
    if not metrics:
        return []
    if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
        raise ValueError(f"`metrics` must be {{name: value}}, but is {metrics!r}.")
    if not datasets:
        raise ValueError(f"`metrics` {sorted(metrics)} need `datasets`: the first is what they were measured on.")
    for name, value in metrics.items():
        if not math.isfinite(real_number(value)):
            raise ValueError(f"`metrics` must be finite numbers, but {name} is {value!r}.")
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=datasets[0],
            dataset_name=datasets[0].split("/")[-1],
            metric_type=re.sub(r"\W+", "_", name.lower()),
            metric_name=name,
            metric_value=real_number(value),
        )
        for name, value in metrics.items()
    ]


def card_text(folder: Path, repo_id: str, description: str | None, samples: bool) -> str:
    """The card below its metadata, from the configurations in a saved pipeline's folder."""

    def read(path):
        return read_object(folder / path) if (folder / path).is_file() else {}

    pipeline = read("model_index.json")["_class_name"]
    pipeline = pipeline[-1] if isinstance(pipeline, list) else pipeline
    network, scheduler = read("unet/config.json"), read("scheduler/scheduler_config.json")
    size, channels, classes = (network.get(key) for key in ("sample_size", "in_channels", "num_class_embeds"))
    images = f"{size_in_words(size)}images with {channels} channel{'s'[: channels != 1]}"
    sde = scheduler.get("sde")
    sde = getattr(GaussianSDE.registered.get(sde), "title", None) or sde
    variant, parameters = weights_in(folder / "unet")
    arguments = f'"{repo_id}"' + (f', variant="{variant}"' if variant else "")
    use = [f"from sde_diffusers import {pipeline}\n", f"pipe = {pipeline}.from_pretrained({arguments})"]
    if pipeline == "ScoreSdePipeline":
        names = network.get("class_names")
        call = f"class_labels=0)  # classes: 0 to {classes - 1}" if classes else ")"
        if classes and names:
            name = json.dumps(names[0], ensure_ascii=False)  # as Python has texts, too
            call = f"class_labels={name})  # or 0; the classes are named above"
        use += [f"output = pipe(batch_size=4{', ' if classes else ''}{call}", 'output.images[0].save("sample.png")']
    without = "from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained("
    paragraphs = [
        GENERATED,
        f"# {repo_id.split('/')[-1]}",
        f"A {'class-conditional ' if classes else ''}score-based generative model "
        f"([arXiv 2011.13456](https://arxiv.org/abs/2011.13456)) of {images}: `{network.get('_class_name')}` with "
        f"{parameters:,} parameters, trained with the {sde}, saved with the sampler `{scheduler.get('_class_name')}`.",
        description and description.strip(),
        values_in_words(network),
        classes_in_words(network.get("class_names")),
        samples and f"![Samples]({SAMPLES_FILE})",
        "## Use",
        "With the package `sde-diffusers` installed, no code of this repository is run:",
        "\n".join(["```python", *use, "```"]),
        "Without it, the repository's own code is; read it first, and name the `revision` that you have read:",
        f"```python\n{without}{arguments}, trust_remote_code=True)\n```",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def check_values(path: Path, rules: dict) -> None:
    """Raise a ValueError if a configuration holds something that no card could say."""
    config = read_object(path)
    for key, (allowed, rule) in rules.items():
        if not rule(config.get(key)):
            raise ValueError(f"`{key}` in {path} must be {allowed}, but is {config.get(key)!r}.")


def size_in_words(size: int | list[int] | None) -> str:
    """The `sample_size` of a network's configuration; nothing for one that takes images of any size."""
    if size is None:
        return ""
    height, width = [size] * 2 if isinstance(size, int) else size
    return f"{height} x {width} "


def values_in_words(network: dict) -> str | None:
    """What a network's images were, unless they had 8 bits."""
    dtype, value_range = network.get("value_dtype", "uint8"), network.get("value_range")
    if dtype == "uint8" and value_range in (None, [0, 255]):
        return None
    span = f" from {value_range[0]:g} to {value_range[1]:g}" if value_range else ""
    return f"The data's values are {dtype}{span}: `data_units=True` gives arrays and tensors in these."


def classes_in_words(names: list[str] | None) -> str | None:
    """The classes with their numbers."""
    if not names:
        return None
    return "Classes: " + ", ".join(f"{k} `{name}`" for k, name in enumerate(names)) + "."


def weights_in(folder: Path) -> tuple[str | None, int]:
    """Variant that a folder's weights must be loaded with (None: none), and their number."""
    files = {path: match["variant"] for path in sorted(folder.iterdir()) if (match := WEIGHTS.fullmatch(path.name))}
    variant = None if None in files.values() or not files else min(files.values())
    parameters = 0
    for path, name in files.items():
        if name == variant:
            with safe_open(path, framework="pt") as tensors:
                parameters += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())
    return variant, parameters
