"""The trained networks that consistency tuning asks beside its own: the one whose ODE it follows, and the classifier
by which images look alike."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from run.config import Config
from run.score_model import SCHEDULERS, initial_network, tunes_consistency
from run.yaml_config import ConfigError
from sde_diffusers import NCSNppUNet2DModel, NoiseConditionalClassifier, Parameterization
from sde_diffusers.guidance import require_same_names, require_shape
from sde_diffusers.network_fit import require_consistency, require_network_fits
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler
from sde_diffusers.weights_digest import weights_digest


def trained_networks(config: Config, scheduler: ScoreSdeScheduler, before: dict) -> tuple[dict, dict]:
    """The networks that the objective of consistency tuning asks, by name, and the digests of their weights likewise.

    "denoiser" if there are solver steps, "perceptual_classifier" if the distance of its maps counts.

    Args:
        before: the state of the checkpoint from which a run goes on, {} of a new one.

    Raises:
        ConfigError: there is no such network, it does not fit the scheduler, or was another one when the run began.
    """
    if not tunes_consistency(config):
        return {}, {}
    sources = {}
    require_tuned_alike("initial_weights", config.initial_weights, scheduler)
    if config.teacher:
        require_tuned_alike("teacher", config.teacher, scheduler)
    if config.objective.get("solver_steps"):
        key = "teacher" if config.teacher else "initial_weights"
        sources["denoiser"] = f"{key}={getattr(config, key)}", load_denoiser(config, scheduler)
    if config.perceptual_classifier:
        source = config.perceptual_classifier
        sources["perceptual_classifier"] = f"perceptual_classifier={source}", load_classifier(source)
    digests = {name: weights_digest(network) for name, (_, network) in sources.items()}
    for name, (source, _) in sources.items():
        if before.get(name) not in (digests[name], None):  # runs of older releases do not tell
            raise ConfigError(
                f"{source} holds another network than when the run began, which compares with its answers: give that "
                "one (a copy, if its run goes on)"
            )
    return {name: network for name, (_, network) in sources.items()}, digests


def require_same_images(config: Config, networks: dict, network: NCSNppUNet2DModel) -> None:
    """Raise a ConfigError unless `trained_networks` know the images, and classes, of the network that is trained."""
    for name, other in networks.items():
        key = name if name != "denoiser" else "teacher" if config.teacher else "initial_weights"
        pair = SimpleNamespace(**{"unet": network, key: other})
        try:
            require_shape(key, pair)
            if name == "denoiser":
                require_same_names(key, pair)
                known, classes = (net.config.num_class_embeds or 0 for net in (other, network))
                if known != classes:
                    raise ValueError(f"`{key}` knows {known} classes, but the network {classes}.")
        except ValueError as error:
            raise ConfigError(f"{key}={getattr(config, key)}: {error}") from error


def load_classifier(source: str) -> NoiseConditionalClassifier:
    """A classifier of `train_classifier.py`. Raises ConfigError if there is none."""
    try:
        return NoiseConditionalClassifier.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"perceptual_classifier must be a classifier of train_classifier.py, but is {source!r}: {error}"
        ) from error


def load_denoiser(config: Config, scheduler: ScoreSdeScheduler) -> NCSNppUNet2DModel:
    """The network whose ODE is followed: the teacher, or else the one that is tuned, as it was before and will stay.

    Raises:
        ConfigError: it has no ODE, or one that can't be followed.
    """
    key = "teacher" if config.teacher else "initial_weights"
    network = initial_network(config, key).eval().requires_grad_(False)
    try:
        require_network_fits(network.config, scheduler.parameterization)
        require_consistency(network.config, False)
        if config.label_dropout and network.config.label_dropout == 0:
            raise ValueError(
                f"it never learnt what no class means (its label_dropout is 0), which label_dropout="
                f"{config.label_dropout:g} asks it: set that to 0"
            )
    except ValueError as error:
        raise ConfigError(
            f"objective.solver_steps={config.objective['solver_steps']} follows the ODE of {key}: {error}"
        ) from error
    return network


def require_tuned_alike(key: str, source: str, scheduler: ScoreSdeScheduler) -> None:
    """Raise a ConfigError unless a consistency model is asked, and answers, as the network of a pipeline.

    Args:
        key: of the configuration, that names the pipeline `source`.
    """
    times = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)

    def asked(p: Parameterization) -> dict:
        alphas, sigmas = p.sde.alpha(times).tolist(), p.sde.sigma(times).tolist()
        told = p.time_input == "sigma" and set(alphas) == {1.0}  # and need not know at which time that is
        keys = {"prediction_type": p.prediction_type, "time_input": p.time_input, "image_range": p.image_range}
        return {**keys, "alpha": alphas} | ({} if told else {"sigma": sigmas})

    try:
        name = ScoreSdeScheduler.load_config(source, subfolder="scheduler").get("_class_name")
        theirs = asked(SCHEDULERS[name].from_pretrained(source, subfolder="scheduler").parameterization)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{key} must be a saved pipeline, but is {source!r}: {error}") from error
    own = asked(scheduler.parameterization)
    if differing := [
        f"{key} {theirs.get(key)} and not {value}" for key, value in own.items() if theirs.get(key) != value
    ]:
        raise ConfigError(
            f"{key}={source} was trained with another scheduler than this one, and would be asked for what "
            f"it did not learn: {'; '.join(differing)} (alpha and sigma at t = 0.25, 0.5, 0.75, 1)"
        )
