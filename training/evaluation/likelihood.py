"""Bits/dim of test images, with the parts of its standard error: of the ODE's model, or a bound on the SDE's."""

import math
from pathlib import Path

import torch
from accelerate import Accelerator

from evaluation.config import EvaluationConfig
from evaluation.samples import network_digest
from evaluation.shards import compute_in_shards, digest
from images.loading import ImageData
from run.draws import seed_of
from run.yaml_config import ConfigError
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.likelihood import likelihood_start, standard_errors


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
    if of_sde and levels is None:
        raise ConfigError("likelihood.model=sde is for images with levels, but these are float32")

    def evaluate(positions: range) -> dict[str, torch.Tensor]:
        images, labels = test[chosen[positions.start : positions.stop]]
        seeds = [seed_of(options.seed, k) for k in chosen[positions.start : positions.stop].tolist()]
        if levels is None:
            images = pipe.pixel_format.to_unit(images, torch.float64).clamp(0, 1)
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
    dequantization = "none (bound of the SDE)" if of_sde else options.dequantize
    # The SDE may start later.
    start = "truncated_normal" if of_sde else options.dequantize
    settings["eps"] = likelihood_start(pipe.scheduler, options.eps, start, levels)
    description = {
        "network": network_digest(pipe.unet),
        "test": test.name,
        "test_images": digest(test.images),
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
