"""The curve of a training: evaluates the averaged weights of every checkpoint that a run has kept.

    accelerate launch training/evaluate_checkpoints.py RUN_FOLDER [FILE.yaml] key=value section.key=value ...

The arguments are those of evaluate.py, with a finished run of train.py in the place of the pipeline (train with
checkpoints_limit=null to keep all checkpoints). The output folder then holds evaluate.py's results of each checkpoint,
in the folder of its name, and

    curve.json, curve.png   the Frechet distance of the samples and the bits/dim against the training images seen

Interrupt it, and the same command goes on.
"""

from run.command_help import help_if_asked

if __name__ == "__main__":
    help_if_asked(__doc__, "evaluation/config.py")

import json
import shutil
import sys
from pathlib import Path

import matplotlib
from accelerate import Accelerator

from evaluate import Evaluation, launch
from evaluation.config import EvaluationConfig
from evaluation.inputs import load_networks
from run.checkpoints import images_seen, list_checkpoints, read_state
from run.launching import start_all_processes
from run.record import read_record, record_in
from run.written_folder import write_whole, written_folder
from run.yaml_config import ConfigError

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

WEIGHTS = "diffusion_pytorch_model.safetensors"
CURVES = {"frechet_distance": "Frechet distance of the samples", "bits_per_dim": "bits/dim of test images"}


def pipeline_of(checkpoint: Path, finished: Path, target: Path) -> None:
    """Write the finished run's pipeline with the averaged weights of a checkpoint as the folder `target`."""

    def own_weights(place: str, names: list[str]) -> list[str]:  # in one file, or in shards and an index
        return [name for name in names if Path(place).name == "unet" and name.startswith(WEIGHTS.partition(".")[0])]

    with written_folder(target) as folder:
        shutil.copytree(finished, folder, dirs_exist_ok=True, ignore=own_weights)
        shutil.copy(checkpoint / "ema.safetensors", folder / "unet" / WEIGHTS)


def evaluate_checkpoint(checkpoint: Path, config: EvaluationConfig, accelerator: Accelerator) -> dict:
    """{"step", "images_seen", metric: record} of one checkpoint."""
    run, folder = Path(config.pipeline), Path(config.output_dir) / checkpoint.name
    state = read_state(checkpoint)
    if accelerator.is_main_process:
        pipeline_of(checkpoint, run / "pipeline", folder / "pipeline")
        record = record_in(state) or read_record(run)
        if record is not None:  # beside the pipeline, where evaluate.py looks for what was held out
            record.write(folder)
    accelerator.wait_for_everyone()
    own = EvaluationConfig(**{**vars(config), "pipeline": str(folder / "pipeline"), "output_dir": str(folder)})
    Evaluation(own, accelerator).run()
    accelerator.wait_for_everyone()
    point = {"step": state["step"], "images_seen": images_seen(state)}
    for record in json.loads((folder / "results.json").read_text())["results"]:
        known = record["value"] is not None and record["images"] in ("samples", "test images")
        if record["metric"] in CURVES and known:
            point[record["metric"]] = record
    return point


def draw_curves(points: list[dict], path: Path) -> None:
    """One panel for each metric, against the number of training images seen."""
    metrics = [metric for metric in CURVES if any(metric in point for point in points)]
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(5 * len(metrics), 3.5), squeeze=False, layout="constrained"
    )
    for panel, metric in zip(panels[0], metrics, strict=True):
        known = [point for point in points if metric in point]
        panel.plot([p["images_seen"] for p in known], [p[metric]["value"] for p in known], marker="o")
        panel.set(xlabel="training images seen", ylabel=CURVES[metric])
        panel.grid(alpha=0.3)
    write_whole(path, lambda incomplete: figure.savefig(incomplete, format="png", dpi=120))
    plt.close(figure)


def evaluate_run(config: EvaluationConfig, accelerator: Accelerator) -> None:
    """Evaluate all checkpoints, and write the curve after each.

    Raises:
        ConfigError: `config.pipeline` is no finished run, nothing is asked for that makes a curve, or a model card is
            to be updated.
    """
    run, folder = Path(config.pipeline), Path(config.output_dir)
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints or not (run / "pipeline").is_dir():
        raise ConfigError(f"{run} is no finished run of train.py: it needs the folders checkpoints and pipeline")
    distances = config.samples.num_images and config.feature_spaces and "frechet_distance" in config.metrics
    if not distances and not config.likelihood.num_images:
        raise ConfigError(
            "the curve needs likelihood.num_images, or samples.num_images with feature_spaces and the metric "
            "frechet_distance"
        )
    if len(config.feature_spaces) > 1:
        raise ConfigError(f"the curve is of one of the feature_spaces, but they are {config.feature_spaces}")
    if not config.likelihood.num_images:
        (network,) = load_networks(config, accelerator.device).values()
        if config.samples.num_images <= network.dimension:
            raise ConfigError(
                f"samples.num_images={config.samples.num_images} is too few for a Frechet distance in the "
                f"{network.dimension} features of {network.name}: take more than these"
            )
    if config.update_card:
        raise ConfigError("update_card is for evaluate.py: a checkpoint has no card")
    points = []
    for checkpoint in checkpoints:
        points.append(evaluate_checkpoint(checkpoint, config, accelerator))
        if accelerator.is_main_process:
            text = json.dumps(points, indent=2, allow_nan=False)
            write_whole(folder / "curve.json", lambda path, text=text: path.write_text(text))
            draw_curves(points, folder / "curve.png")


def main(arguments: list[str]) -> int:
    """Evaluate all checkpoints; returns the exit status."""
    return launch(evaluate_run, arguments)


if __name__ == "__main__":
    start_all_processes()
    sys.exit(main(sys.argv[1:]))
