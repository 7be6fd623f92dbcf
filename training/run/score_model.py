"""The network, the scheduler and the objective that a configuration describes."""

from functools import partial

import torch

from images.augmentation import LABELS
from run.config import Config
from run.measured import AUTO, without_auto
from run.record import ImageRecord, refuse_said_by_images
from run.yaml_config import ConfigError, construct
from sde_diffusers import (
    ConsistencyTuning,
    DenoisingScoreMatching,
    NCSNppUNet2DModel,
    ScoreSdeConsistencyScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.consistency import require_boundary
from sde_diffusers.models.presets import NCSNPP_PRESETS
from sde_diffusers.network_fit import require_network_fits
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler

# What a network of the same tensors may be asked for or answer otherwise, and would have to learn anew.
ASKED_BY = ("image_range", "preconditioning", "sigma_data", "scale_by_sigma", "time_embedding_type", "patch_size")
SCHEDULERS = {cls.__name__: cls for cls in ScoreSdeProbabilityFlowScheduler._get_compatibles()}


def build_scheduler(config: Config) -> ScoreSdeScheduler:
    """The sampler; its `parameterization` says how the network is asked and what it answers.

    Args:
        config: with `scheduler.class_name` (a class of sde_diffusers) and the arguments of that class.

    Raises:
        ConfigError: on unknown names, keys or values.
    """
    arguments = dict(config.scheduler)
    name = arguments.pop("class_name", ScoreSdeProbabilityFlowScheduler.__name__)
    if name not in SCHEDULERS:
        raise ConfigError(f"scheduler.class_name must be one of {', '.join(SCHEDULERS)}, but is {name!r}")
    if arguments.get("sigma_max") == AUTO and arguments.get("sde") != "ve":
        raise ConfigError(f"scheduler.sigma_max=auto is for sde=ve, but sde is {arguments.get('sde')!r}")
    return construct("scheduler", SCHEDULERS[name], without_auto("scheduler", arguments))


def tunes_consistency(config: Config) -> bool:
    """Whether the training makes a consistency model of a score network."""
    return config.objective.get("objective") == "consistency"


def build_objective(config: Config, scheduler: ScoreSdeScheduler) -> DenoisingScoreMatching | ConsistencyTuning:
    """The training objective for the scheduler's SDE and parameterization. Raises ConfigError as above."""
    cls = ConsistencyTuning if tunes_consistency(config) else DenoisingScoreMatching
    return construct(
        "objective", partial(cls, scheduler.parameterization), without_auto("objective", config.objective)
    )


def build_network(
    config: Config,
    image_shape: tuple[int, int, int] | None = None,
    record: ImageRecord | None = None,
) -> NCSNppUNet2DModel:
    """A new network for images of the given shape (C, H, W); None keeps the preset's.

    Args:
        record: what their values and classes mean, which the network's configuration will say.

    Raises:
        ConfigError: on unknown keys or values, or if the configuration asks for other images.
    """
    refuse_said_by_images(config.model)
    arguments = without_auto("model", config.model)
    if record is not None:
        if record.value_dtype != "uint8" or record.value_range != [0, 255]:
            arguments |= {"value_dtype": record.value_dtype, "value_range": record.value_range}
        classes, names = arguments.get("num_class_embeds"), record.class_names
        if classes and names:  # no image has a label beyond: `check_labels`
            arguments |= {"class_names": names[:classes]}
    preset = arguments.pop("preset", None)
    if preset is not None and preset not in NCSNPP_PRESETS:
        raise ConfigError(f"model.preset must be null or one of {', '.join(NCSNPP_PRESETS)}, but is {preset!r}")
    if image_shape is not None:
        channels, *sides = image_shape
        size = sides[0] if sides[0] == sides[1] else tuple(sides)
        for key, actual in (("in_channels", channels), ("sample_size", size)):
            own = arguments.setdefault(key, actual)
            if (tuple(own) if isinstance(own, list) else own) != actual:
                raise ConfigError(f"model.{key} is {arguments[key]}, but the images have {actual}: leave it out")
    if "label_dropout" in arguments:
        raise ConfigError("model.label_dropout is what label_dropout of the training says: leave it out")
    if "consistency" in arguments:
        raise ConfigError("model.consistency is what objective.objective says: leave it out")
    if tunes_consistency(config):
        arguments["consistency"] = True
    if arguments.get("num_class_embeds"):
        arguments["label_dropout"] = (
            config.label_dropout
        )  # whether "no class" was learnt, for all who load the network
    return construct("model", NCSNppUNet2DModel, {**NCSNPP_PRESETS.get(preset, {}), **arguments})


def initial_network(config: Config, key: str = "initial_weights") -> NCSNppUNet2DModel:
    """The network of the pipeline `config.initial_weights`, or of another key. Raises ConfigError if there is none."""
    source = getattr(config, key)
    try:
        return NCSNppUNet2DModel.from_pretrained(source, subfolder="unet")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} must be a saved pipeline, but is {source!r}: {error}") from error


def load_initial_weights(config: Config, network: NCSNppUNet2DModel) -> list[str]:
    """Copy the weights of the pipeline `config.initial_weights` into a new network of the same architecture.

    The layers `config.new_layers` keep their own, be they in the pipeline or not: those of other classes, say.

    Returns:
        What has to be said of it, in sentences.

    Raises:
        ConfigError: if there is no such pipeline, or its tensors differ in name or shape (they are listed), or the
            network has no such layer, or its classes are those of the pipeline in another order.
    """
    source, new = config.initial_weights, tuple(f"{layer}." for layer in config.new_layers)
    own = network.state_dict()
    for layer in new:
        if not any(name.startswith(layer) for name in own):
            layers = ", ".join(dict.fromkeys(name.partition(".")[0] for name in own))
            raise ConfigError(f"new_layers: the network has no layer {layer[:-1]!r}; it has {layers}")
    initial = initial_network(config)
    weights = initial.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(new)}
    weights |= {name: tensor for name, tensor in own.items() if name.startswith(new)}
    shapes = [{name: tuple(t.shape) for name, t in tensors.items()} for tensors in (weights, own)]
    names = sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
    if names:
        listed = "; ".join(f"{name}: {shapes[0].get(name)}, not {shapes[1].get(name)}" for name in names[:8])
        raise ConfigError(
            f"initial_weights: the network of {source!r} is another one than this configuration's, in {len(names)} "
            f"tensors ({listed}{'; ...' if len(names) > 8 else ''})"
        )
    network.load_state_dict(weights)
    notes = [
        f"Note: {key} of the network of initial_weights={source} is {theirs!r}, and here {ours!r}"
        for key in ASKED_BY
        if (theirs := initial.config.get(key)) != (ours := network.config.get(key))
    ]
    before, now = (list(net.config.class_names or ()) for net in (initial, network))
    if not before or not now or before == now or "class_embedding" in config.new_layers:
        return notes
    if sorted(before) == sorted(now):
        raise ConfigError(
            f"initial_weights: the classes of {source!r} are {before}, but here their order is {now}: name the "
            "folders so that it is the same, or give new_layers=[class_embedding]"
        )
    return [
        *notes,
        f"Note: the classes of initial_weights={source} are {before}, and here {now}; new_layers=[class_embedding] "
        "leaves that layer as a new network has it",
    ]


def check_score_model(config: Config) -> None:
    """Everything about these sections that can be said before the images are loaded.

    Raises:
        ConfigError: on unknown keys or values, or if network and scheduler do not fit each other.
    """
    with torch.device("meta"):  # neither time nor memory for weights
        network = build_network(config).config
    scheduler = build_scheduler(config)
    build_objective(config, scheduler)
    parameterization = scheduler.parameterization
    if tuple(network.image_range) != parameterization.image_range:
        raise ConfigError(
            f"model.image_range is {tuple(network.image_range)}, but scheduler.image_range is "
            f"{parameterization.image_range}: they must be equal"
        )
    try:
        require_network_fits(network, parameterization)
    except ValueError as error:
        raise ConfigError(f"model and scheduler: {error}") from error
    check_consistency(config, network, scheduler)
    try:  # too much noise for so few steps is refused now, and not at the first samples
        scheduler.set_timesteps(config.samples.num_inference_steps)
    except ValueError as error:
        raise ConfigError(f"samples.num_inference_steps and scheduler: {error}") from error
    if config.distance_every and config.distance.features is None:
        raise ConfigError("distance_every needs a feature network: distance.features=NAME")
    if config.distance_every:
        try:
            scheduler.set_timesteps(config.distance.num_inference_steps)
        except ValueError as error:
            raise ConfigError(f"distance.num_inference_steps and scheduler: {error}") from error
    if not network.num_class_embeds and (config.label_dropout or config.samples.guidance_scale != 1):
        raise ConfigError("label_dropout and samples.guidance_scale need a number of classes, model.num_class_embeds")
    if config.samples.guidance_scale != 1 and not config.label_dropout:
        raise ConfigError(
            f"samples.guidance_scale={config.samples.guidance_scale:g} asks the network without a class, which it "
            "learns by label_dropout above 0, but that is 0"
        )
    if config.new_layers and not config.initial_weights:
        raise ConfigError(f"new_layers={config.new_layers} says what initial_weights leaves out, but that is null")
    if config.noise_levels and not config.validate_every:
        raise ConfigError("noise_levels tells the validation loss apart, but there is none: validate_every is 0")
    if network.pixel_levels and (config.data.uniform_dequantization or config.augmentation):
        key = "data.uniform_dequantization" if config.data.uniform_dequantization else "augmentation"
        raise ConfigError(f"model.pixel_levels says that pixels have levels, which {key} takes from them")
    if config.augmentation and network.augment_dim != LABELS:
        raise ConfigError(
            f"augmentation needs a network that is told of it, model.augment_dim={LABELS}, but that is "
            f"{network.augment_dim!r}"
        )


def check_consistency(config: Config, network, scheduler: ScoreSdeScheduler) -> None:
    """Raise a ConfigError unless consistency tuning has what it needs, or is not asked for."""
    name, tuned = ScoreSdeConsistencyScheduler.__name__, tunes_consistency(config)
    objective = config.objective if tuned else {}
    if config.teacher and not objective.get("solver_steps"):
        raise ConfigError(
            f"teacher={config.teacher} is the network whose ODE is followed: it needs objective.objective=consistency "
            "with objective.solver_steps above 0"
        )
    if bool(config.perceptual_classifier) != bool(objective.get("perceptual_weight")):
        raise ConfigError(
            "perceptual_classifier and objective.perceptual_weight above 0 need "
            f"each other, but are {config.perceptual_classifier} and {objective.get('perceptual_weight', 0)}"
        )
    if config.kept_batches and (not objective.get("solver_steps") or objective.get("q") != 1):
        raise ConfigError(
            f"kept_batches={config.kept_batches} keeps where the ODE leads: it needs objective.objective=consistency "
            "with objective.solver_steps above 0 and objective.q=1"
        )
    if tuned != scheduler.of_consistency_models:
        raise ConfigError(
            f"scheduler.class_name must be {name} with objective.objective=consistency, and with no other one, but is "
            f"{type(scheduler).__name__}"
        )
    if not tuned:
        return
    if not config.initial_weights:
        raise ConfigError("objective.objective=consistency tunes a trained network: initial_weights must name one")
    if config.objective.get("solver_steps") and (config.augmentation or config.new_layers):
        raise ConfigError(
            "objective.solver_steps follows the ODE of initial_weights, which knows neither augmentation nor "
            "new_layers: it must be 0, or they off"
        )
    if config.samples.guidance_scale not in (0, 1):
        raise ConfigError(
            f"samples.guidance_scale must be 1 (or 0) for a consistency model, but is {config.samples.guidance_scale}"
        )
    try:
        require_boundary(network, scheduler.parameterization)
    except ValueError as error:
        raise ConfigError(f"model and scheduler: {error}") from error
