"""Measured numbers in a model card's metadata (`model-index`), as the Hub reads them; the rest of the card stays."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from run.written_folder import write_whole
from run.yaml_config import ConfigError
from sde_diffusers.model_card import TASK, read_card

NAMES = {
    "frechet_distance": "Frechet distance",
    "kernel_distance": "Kernel distance",
    "bits_per_dim": "Bits per dimension",
    "images_per_second": "Images per second",
    "exact_copies": "Samples that are copies of training images",
    "nearer_than_1_percent_of_test_images": "Samples nearer to training images than 1 % of test images",
}
# What tells two results of one metric apart, beside data set and name.
SETTINGS = ("num_images", "sampler", "seed", "precision", "space", "given_class", "passes", "probes", "dequantization")
TYPES = {("frechet_distance", "inception"): "fid", ("kernel_distance", "inception"): "kid"}


def load_card(pipeline: str) -> ModelCard:
    """The card of a pipeline's folder.

    Raises:
        ConfigError: `pipeline` is no folder with a README.md, or its metadata cannot be read.
    """
    path = Path(pipeline) / "README.md"
    if not path.is_file():
        raise ConfigError(f"update_card=true needs a folder with a README.md, but there is no {path}")
    try:
        return read_card(path)
    except ValueError as error:
        raise ConfigError(f"update_card=true: {error}") from error


def eval_result(record: dict, dataset_type: str) -> EvalResult:
    """A record of the results file as an entry of the model index; everything that its value depends on are `args`."""
    metric, space = record["metric"], record.get("feature_space", "")
    heading = NAMES.get(metric, metric.capitalize())
    taken = {"metric", "value", "dataset", "split"}
    arguments = {key: value for key, value in record.items() if key not in taken}
    if "sampler" in record:  # on one line
        sampler = dict(record["sampler"])
        name = sampler.pop("class_name")
        arguments["sampler"] = f"{name}({', '.join(f'{key}={value!r}' for key, value in sampler.items())})"
    return EvalResult(
        task_type=TASK,
        dataset_type=dataset_type,
        dataset_name=record["dataset"],
        dataset_split=record["split"],
        metric_type=TYPES.get((metric, space.split("-")[0]), metric),
        metric_name=f"{heading} ({space})" if space else heading,
        metric_value=record["value"],
        metric_args=arguments,
    )


def update_card(pipeline: str, results: list[EvalResult], network: str) -> None:
    """Put results into a card; they replace those of the same metric with the same settings, and of other weights.

    Args:
        pipeline: the folder.
        results: whose `metric_args["network"]` is `network`.
        network: digest of the weights; results that name another one are out of date.
    """
    card = load_card(pipeline)
    key = ("dataset_name", "dataset_split", "metric_type", "metric_name")

    def settings(result: EvalResult) -> tuple:
        arguments = result.metric_args or {}
        return (*(getattr(result, name) for name in key), *(str(arguments.get(name)) for name in SETTINGS))

    replaced = {settings(result) for result in results}
    kept = [
        result
        for result in card.data.eval_results or []
        if settings(result) not in replaced and (result.metric_args or {}).get("network", network) == network
    ]
    card.data.eval_results = kept + results
    card.data.model_name = card.data.model_name or Path(pipeline).resolve().name
    write_whole(Path(pipeline) / "README.md", lambda path: path.write_text(str(card), encoding="utf-8"))
