"""Bits/dim of test images, with the parts of its standard error: of the ODE's model, or a bound on the SDE's."""

import math
from pathlib import Path

import torch
from accelerate import Accelerator

from evaluation.config import EvaluationConfig, LikelihoodConfig
from evaluation.samples import meaning_of_values, network_digest
from evaluation.shards import compute_in_shards, digest
from images.loading import ImageData
from run.draws import seed_of
from run.yaml_config import ConfigError
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.likelihood import likelihood_start, standard_errors
from sde_diffusers.likelihood.questions import check_solver, require_unbounded


def require_likelihood(config: EvaluationConfig, pipe: ScoreSdePipeline) -> None:
    """Raise a ConfigError if the likelihood cannot be had as `config.likelihood` says, before any work."""
    options, levels = config.likelihood, pipe.pixel_format.levels
    if levels is None:
        for key in ("passes", "dequantize"):
            if getattr(options, key) != getattr(LikelihoodConfig, key):
                raise ConfigError(
                    f"likelihood.{key}={getattr(options, key)} is for images with levels, but these are float32"
                )
        if options.model == "sde":
            raise ConfigError("likelihood.model=sde is for images with levels, but these are float32")
    try:
        require_unbounded(pipe.scheduler)
        if options.model == "ode":
            check_solver(options.rtol, options.atol, None)
        likelihood_start(pipe.scheduler, options.eps, _start(options), levels or 256)
    except ValueError as error:
        raise ConfigError(f"likelihood: {error}") from error


def require_within_range(test: ImageData) -> None:
    """Raise a ConfigError if values lie beyond the range that they are of: there the likelihood would be another's."""
    low, high = test.images.min().item(), test.images.max().item()
    if low < test.pixels.low or high > test.pixels.high:
        raise ConfigError(
            f"likelihood.num_images: values of {test.name} go from {low:g} to {high:g}, beyond {test.pixels.low:g} "
            f"to {test.pixels.high:g}, which the network was trained with"
        )


def _start(options: LikelihoodConfig) -> str:
    """The dequantization that says where the SDE starts, if `eps` does not; that of the bound may start later."""
    return "truncated_normal" if options.model == "sde" else options.dequantize


def bits_per_dim(
    config: EvaluationConfig, pipe: ScoreSdePipeline, test: ImageData, accelerator: Accelerator
) -> tuple[dict, torch.Tensor]:
    """Mean bits/dim of `config.likelihood.num_images` test images (fewer if there are fewer), chosen by the seed.

    Returns:
        The number with everything that it depends on, and the bits/dim (N,) of each image.

    Raises:
        ConfigError: the folder holds results of another configuration.
    """
    options = config.likelihood
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(options.seed))
    chosen = order[: options.num_images]

    levels = pipe.pixel_format.levels
    of_sde = options.model == "sde"

    def evaluate(positions: range) -> dict[str, torch.Tensor]:
        images, labels = test[chosen[positions.start : positions.stop]]
        seeds = [seed_of(options.seed, k) for k in chosen[positions.start : positions.stop].tolist()]
        if levels is None:
            images = pipe.pixel_format.to_unit(images, torch.float64).clamp(0, 1)  # of what rounding adds
        given = {
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "passes": options.passes if levels else None,
            "eps": options.eps,
            "class_labels": labels if options.given_class else None,
        }
        if of_sde:
            output = pipe.variational_bound(images, draws=options.draws, **given)
        else:
            given |= {"dequantize": options.dequantize if levels else False, "probes": options.probes}
            output = pipe.bits_per_dim(images, rtol=options.rtol, atol=options.atol, **given)
        nfe = torch.full((len(images),), output.nfe, dtype=torch.float64)
        return {"estimates": output.estimates.permute(2, 0, 1), "nfe": nfe}  # images first

    own = ("draws",) if of_sde else ("probes", "rtol", "atol")
    settings = {key: getattr(options, key) for key in ("passes", "given_class", *own)}
    dequantization = "none (bound of the SDE)" if of_sde else options.dequantize if levels else "none"
    settings["eps"] = likelihood_start(pipe.scheduler, options.eps, _start(options), levels or 256)
    description = {
        **meaning_of_values(pipe),
        "network": network_digest(pipe.unet),
        "test": test.name,
        "test_images": digest(test.images),
        "test_labels": digest(test.labels) if options.given_class else None,
        "sde": repr(pipe.scheduler.sde),
        "prediction_type": pipe.scheduler.config.prediction_type,
        "time_input": pipe.scheduler.config.time_input,
        "seed": options.seed,
        "dequantization": dequantization,
        **settings,
    }
    found = compute_in_shards(
        evaluate,
        Path(config.output_dir) / "shards" / "likelihood",
        description,
        len(chosen),
        min(options.batch_size, len(chosen)),
        accelerator,
        "Likelihood",
    )
    estimates = found["estimates"].permute(1, 2, 0)
    each, errors = estimates.mean((0, 1)), standard_errors(estimates, of_sde, dequantized=levels is not None)
    record = {
        "metric": "bits_per_dim",
        "value": each.mean().item(),
        "standard_error": {name: None if math.isnan(error) else error for name, error in errors.items()},
        "images": "test images",
        "dataset": test.name,
        "split": config.data.test_split,
        "num_images": len(chosen),
        "sde": repr(pipe.scheduler.sde),
        "nfe": found["nfe"].mean().item(),
        "batch_size": min(options.batch_size, len(chosen)),
        "seed": options.seed,
        "dequantization": dequantization,
        "precision": "float32 network" + ("" if of_sde else ", float64 ODE"),
        **settings,
    }
    return record, each
