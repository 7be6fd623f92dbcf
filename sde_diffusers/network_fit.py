"""Where network and parameterization meet: what a network does with the value that it is conditioned on must suit it.

Fourier features are those of the value's logarithm, networks of score matching divide their output by the noise level
that they take the value for, and EDM's preconditioning takes it for sigma. Another value is a number like any other:
without this check such a network trains badly, or answers NaN, and nothing says why.
"""

import functools
import logging
import math

import torch

from sde_diffusers.parameterization import Parameterization

network_fit_log = logging.getLogger(__name__)

NO_SCORE = (
    "The network is a consistency model (`consistency`=True): its answer is the end of the probability flow ODE "
    "through x_t, not the mean E[x_0 | x_t], so that it has no score. `ScoreSdeConsistencyScheduler` samples it; "
    "likelihoods, codes, posteriors and other samplers need the network that it was tuned from."
)
NOT_CONSISTENT = (
    "The network is no consistency model (`consistency`=False): its answer is the mean E[x_0 | x_t], which from pure "
    "noise is a mean of all images. Tune it (`objective.objective=consistency` of training/train.py), or take another "
    "sampler than `ScoreSdeConsistencyScheduler`."
)


def config_of(network):
    """The configuration of a network, also of one that is wrapped (by DistributedDataParallel, `functools.partial`);
    None if it has none."""
    while not hasattr(network, "config"):
        inner = getattr(network, "module", None) or getattr(network, "func", None)
        if inner is None:
            return None
        network = inner
    return network.config


def require_own_scheduler(scheduler) -> None:
    """Raise a `ValueError` for a scheduler of another library, which knows neither the SDE nor the network's input."""
    if not hasattr(scheduler, "parameterization"):
        name = type(scheduler).__name__
        raise ValueError(
            f"`scheduler` must be one of sde_diffusers (ScoreSde...Scheduler), but is {name}. Samplers change by "
            "`pipe.scheduler = ScoreSdeExponentialScheduler.from_config(scheduler.config)`, say, from the one before. "
            f"A pipeline of diffusers with its {name} is converted by `sde_diffusers.convert.from_diffusers`, this "
            "one to theirs by `sde_diffusers.convert.to_diffusers`."
        )


def require_configured(unet) -> None:
    """Raise a `ValueError` for a network that says nothing of the images that it takes."""
    if not hasattr(unet, "config"):
        raise ValueError(
            "`unet` must be a model of diffusers, with a configuration, such as `NCSNppUNet2DModel` or `UNet2DModel`, "
            f"but is {type(unet).__name__}."
        )


def require_network_fits(config, parameterization: Parameterization) -> None:
    """Raise a `ValueError` if a network cannot be asked as a scheduler would ask it.

    Args:
        config: the network's configuration: that of `NCSNppUNet2DModel`, of diffusers' `UNet2DModel` (whose Fourier
            features come with the division), or any other one, of which nothing is known and nothing demanded.
        parameterization: the scheduler's.

    Raises:
        ValueError: naming the settings of both.
    """
    time_input = parameterization.time_input
    taken, answered = (getattr(config, key, None) for key in ("in_channels", "out_channels"))
    if None not in (taken, answered) and taken != answered:
        raise ValueError(
            f"The network answers with {answered} channels (`out_channels`) to images of {taken} (`in_channels`): "
            "they must be as many."
        )
    if getattr(config, "time_embedding_type", None) == "learned" or getattr(config, "class_embed_type", None):
        raise ValueError(
            "The network looks up what it is conditioned on in a table of whole numbers (`time_embedding_type`="
            "'learned'), or takes classes for times or vectors (`class_embed_type`), which it is not given here: "
            f"these are {getattr(config, 'time_embedding_type', None)!r} and "
            f"{getattr(config, 'class_embed_type', None)!r}."
        )
    own = getattr(config, "image_range", None)
    if own is not None and tuple(own) != tuple(parameterization.image_range):
        say_once(
            f"`image_range` of the network is {tuple(own)}, but that of the scheduler {parameterization.image_range}: "
            "unless the network is yet to be trained, images come out too dark, too bright or clipped."
        )
    if getattr(config, "preconditioning", None) == "edm":
        asked = (parameterization.prediction_type, time_input)
        if asked != ("sample", "sigma"):
            raise ValueError(
                "A network with `preconditioning`='edm' needs a scheduler with `prediction_type`='sample' and "
                f"`time_input`='sigma', but they are {asked[0]!r} and {asked[1]!r}."
            )
    elif getattr(config, "time_embedding_type", None) == "fourier":
        if getattr(config, "scale_by_sigma", True) and time_input != "sigma":
            raise ValueError(
                "The network divides its output by the value that it is conditioned on (`scale_by_sigma`=True, and "
                "every `UNet2DModel` of diffusers with `time_embedding_type`='fourier'), which then must be sigma, "
                f"but `time_input` of the scheduler is {time_input!r}: set `scale_by_sigma`=False, or "
                "`time_input`='sigma'."
            )
        if time_input == "index":
            raise ValueError(
                "The network takes the logarithm of the value that it is conditioned on "
                "(`time_embedding_type`='fourier'), but `time_input` of the scheduler is 'index', which begins at 0: "
                "set `time_embedding_type`='positional', or another `time_input`."
            )
    elif getattr(config, "scale_by_sigma", False):
        _require_same_table(config, parameterization)


@functools.cache
def say_once(message: str) -> None:
    """Warn, but of the same thing not twice."""
    network_fit_log.warning(message)


def _require_same_table(config, parameterization: Parameterization) -> None:
    """Raise a ValueError unless the scheduler's indices stand for the noise levels that the network divides by."""
    needed = "The network divides its output by the noise level of an index (`scale_by_sigma`=True with "
    needed += "`time_embedding_type`='positional')"
    if parameterization.time_input != "index":
        raise ValueError(
            f"{needed}, but `time_input` of the scheduler is {parameterization.time_input!r}: set "
            "`scale_by_sigma`=False, or `time_input`='index'."
        )
    ends = torch.tensor([0.0, config.num_scales - 1.0], dtype=torch.float64)
    levels = (config.sigma_max, config.sigma_min)
    same_length = parameterization.table_length == config.num_scales
    found = parameterization.sde.sigma(parameterization.sde_time(ends)).tolist() if same_length else (None, None)
    if not same_length or not all(math.isclose(*pair, rel_tol=1e-3) for pair in zip(levels, found, strict=True)):
        table = f"{parameterization.table_length} noise levels"
        table += f" from {found[0]:.4g} to {found[1]:.4g}" if same_length else ""
        raise ValueError(
            f"{needed}: one of {config['num_scales']} levels from {levels[0]:.4g} to {levels[1]:.4g} (`num_scales`, "
            f"`sigma_max`, `sigma_min`), but those of the scheduler are {table}: its `sde` must be 've' with the same "
            "values."
        )


def size_multiple(network) -> int | None:
    """Of what the height and width of its images must be multiples; None if the network takes only its own size."""
    if getattr(network, "size_multiple", None) is not None:
        return network.size_multiple
    config = network.config
    if getattr(config, "down_block_types", None) and getattr(config, "up_block_types", None):  # diffusers' U-Nets
        return 2 ** (len(config.down_block_types) - 1)
    return None


def require_size(name: str, size: tuple[int, int], own: tuple[int, int], networks) -> None:
    """Raise a `ValueError`, which names the argument, unless networks take images of another size than their own.

    Args:
        size: (H, W) of the images that the argument gives or asks for.
        own: that of the networks' training.
    """
    if tuple(size) == tuple(own):
        return
    what = f"`{name}` means images of {size[0]} x {size[1]} pixels, but the network"
    for network in networks:
        multiple = size_multiple(network)
        if multiple is None:
            raise ValueError(f"{what} takes none but its own {own[0]} x {own[1]}.")
        if size[0] % multiple or size[1] % multiple:
            raise ValueError(f"{what} takes only multiples of {multiple}, or its own {own[0]} x {own[1]}.")


def require_answers(network, scheduler, sampling: bool) -> None:
    """Raise a `ValueError` unless a network's answers are what a scheduler, or what is asked beside samples, takes.

    Args:
        network: whose configuration, if it has the key `consistency`, says what it answers.
        sampling: whether samples are asked for; all else needs E[x_0 | x_t].
    """
    config = getattr(network, "config", None)
    if getattr(scheduler, "of_consistency_models", False):
        if not sampling:
            raise ValueError(NO_SCORE)
        require_consistency(config, True)
    else:
        require_consistency(config, False)


def require_consistency(config, wanted: bool) -> None:
    """Raise a `ValueError` if a network is no consistency model though one is wanted, or is one though none is."""
    found = getattr(config, "consistency", None)
    if found is not None and found is not wanted:
        raise ValueError(NO_SCORE if found else NOT_CONSISTENT)


def require_mixable(scheduler, name: str, scale: float, allowed: tuple[int, ...]) -> None:
    """Raise a `ValueError` if guidance of this scale would mix the answers of a consistency model."""
    if getattr(scheduler, "of_consistency_models", False) and scale not in allowed:
        raise ValueError(
            f"`{name}` must be {' or '.join(map(str, allowed))} with a consistency model, but is {scale}: guidance "
            "changes the score along the way from the noise, and such a model jumps to the end of that way. What it "
            "mixes would be finished images. `class_labels` need no guidance."
        )
