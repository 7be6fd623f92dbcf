"""Weights averaged over another share of a training, chosen afterwards (arXiv 2312.02696, section 3).

    python training/average.py RUN_FOLDER sigma_rel=0.15 output_dir=runs/longer_average

writes a pipeline whose weights are the average of width sigma_rel: the standard deviation of the average's profile, as
a share of the steps until then, above 0 and at most 0.2887 (the mean of all steps). The run, of train.py with
power_averages.snapshot_every=STEPS, has kept two averages at intervals (of widths 0.05 and 0.1 by default); widths
between and around theirs come from them with an error that is printed. The other key:

    step=N      average until this step, of those kept, not until the last one
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from run.power_averages import average_of_any_width
from run.written_folder import WriteError, written_folder
from run.yaml_config import ConfigError, merge
from sde_diffusers import ScoreSdePipeline


@dataclass
class AverageConfig:
    run: str = MISSING
    output_dir: str = MISSING
    sigma_rel: float = MISSING
    step: int | None = None


def average(config: AverageConfig) -> str:
    """Write the pipeline; returns what is to be said about it.

    Raises:
        ConfigError: the run does not allow what is asked for, or `output_dir` exists.
        WriteError: `output_dir` cannot be written.
    """
    run, target = Path(config.run), Path(config.output_dir)
    models = [run / name for name in ("pipeline", "best") if (run / name / "model_index.json").is_file()]
    if not models:
        raise ConfigError(f"{run} is no run of train.py that has saved a pipeline: it needs pipeline/ or best/")
    if target.exists():
        raise ConfigError(f"output_dir {target} exists: delete it or choose another")
    try:
        parameters, fit, step = average_of_any_width(run, config.sigma_rel, config.step)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        pipeline = ScoreSdePipeline.from_pretrained(models[0])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{models[0]} cannot be loaded: {error}") from error
    own = dict(pipeline.unet.named_parameters())  # buffers are those of the pipeline
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in parameters.items()}:
        raise ConfigError(f"the averages in {run} are those of another network than its {models[0].name}")
    pipeline.unet.load_state_dict(parameters, strict=False)
    with written_folder(target) as folder:
        pipeline.save_pretrained(folder)
    return (
        f"{target}: average until step {step:,} of width sigma_rel={config.sigma_rel:g}, from {len(fit.coefficients)} "
        f"kept averages; its profile differs from the power function by {100 * fit.error:.2g} %"
    )


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status."""
    try:
        if not arguments or "=" in arguments[0]:
            raise ConfigError("the first argument must be a run's folder, as in: average.py runs/demo sigma_rel=0.15")
        print(average(merge(AverageConfig, {}, [], arguments[1:], run=arguments[0])))
    except (ConfigError, WriteError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
