"""How a scheduler's configuration names an SDE and its parameters.

The name is looked up among all SDEs that are defined; the parameters are the arguments of its constructor, given in
`sde_parameters`. Those of the first SDEs have keys of their own as well, each of which goes to the SDEs that take it.
"""

import difflib
import inspect
from types import NoneType

import torch

from sde_diffusers.parameterization import require_choice
from sde_diffusers.sdes.gaussian import GaussianSDE

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# Key of the configuration: argument of the constructor.
SDE_KEYS = {
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "sigma": "sigma",
    "beta_min": "beta_min",
    "beta_max": "beta_max",
    "trained_betas": "betas",
}


def sde_class(argument: str, name: str) -> type[GaussianSDE]:
    """The SDE of that name. Raises a `ValueError` that names the argument, and the nearest name, if there is none."""
    try:
        require_choice(argument, name, GaussianSDE.registered)
    except ValueError as error:
        raise ValueError(f"{error} (An SDE of your own must have been defined, or imported, before.)") from None
    return GaussianSDE.registered[name]


def parameters_of(cls: type[GaussianSDE]) -> dict[str, inspect.Parameter]:
    """The arguments of an SDE's constructor."""
    parameters = inspect.signature(cls).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in VARIADIC}


def keys_of(cls: type[GaussianSDE]) -> list[str]:
    """The keys of a configuration that go to this SDE."""
    names = parameters_of(cls)
    return [key for key, name in SDE_KEYS.items() if name in names]


def build_sde(argument: str, name: str, parameters: dict | None, **keys) -> GaussianSDE:
    """The SDE that a configuration names.

    Args:
        argument: "sde" or "sampling_sde", for messages.
        name: of the SDE.
        parameters: arguments of its constructor; None = the defaults.
        keys: values of `SDE_KEYS`; None, and what this SDE does not take, is left out.

    Raises:
        ValueError: on an unknown name or parameter, with the nearest one; on one that is given twice with two values;
            on values out of range; on a class of other code that is no SDE of images that become noise.
    """
    cls = sde_class(argument, name)
    if not isinstance(parameters, (dict, NoneType)):
        raise ValueError(f"`{argument}_parameters` must be None or a dictionary, but is {parameters!r}.")
    parameters, allowed = dict(parameters or {}), parameters_of(cls)
    for parameter in parameters:
        if parameter not in allowed:
            near = difflib.get_close_matches(str(parameter), [*allowed], 1, 0.4)
            advice = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(allowed) or 'none'}."
            raise ValueError(f"`{argument}_parameters` holds {parameter!r}, which {name!r} does not take. {advice}")
    for key in keys_of(cls):
        value, parameter = keys.get(key), SDE_KEYS[key]
        taken = parameters.setdefault(parameter, value) if value is not None else None
        if taken is not value and taken != value:
            raise ValueError(
                f"`{key}` is {value!r}, but `{argument}_parameters` has {parameter}={parameters[parameter]!r}."
            )
    missing = [name for name in allowed if allowed[name].default is inspect.Parameter.empty and name not in parameters]
    if missing:
        raise ValueError(f"`{argument}_parameters` must hold {', '.join(missing)} for {name!r}.")
    sde = cls(**parameters)
    if cls.__module__.split(".")[0] != __name__.split(".")[0]:  # this package's own are tested
        require_one_sde(argument, sde)
    return sde


def require_one_sde(argument: str, sde: GaussianSDE) -> None:
    """Raise a `ValueError` unless all functions of an SDE are those of its alpha and sigma, and noise grows in time.

    A class that changes one of them inherits the others from another SDE.
    """
    name, step = f"`{argument}`={sde.name!r}", 1e-5
    t = torch.linspace(max(sde.smallest_time, 0.0) + 0.0123, 0.9871, 97, dtype=torch.float64)
    alpha, sigma, level = sde.alpha(t), sde.sigma(t), sde.half_log_snr(t)
    usual = alpha.isfinite() & sigma.isfinite() & (alpha > 0) & (sigma > 0)
    if not usual.all():
        raise ValueError(f"{name} must have finite alpha and sigma above 0 at all times between 0 and 1.")
    if not (level.diff() < 0).all():
        raise ValueError(f"{name} must add noise from t = 0, the images, to t = 1: alpha / sigma must fall all along.")

    def slope(function):
        return (function(t + step) - function(t - step)) / (2 * step)

    drift = slope(lambda u: sde.alpha(u).log())
    found = {
        "log_alpha": (sde.log_alpha(t), alpha.log()),
        "half_log_snr": (level, alpha.log() - sigma.log()),
        "inverse_half_log_snr": (sde.half_log_snr(sde.inverse_half_log_snr(level)), level),
    }
    if sde.smooth:
        variance_rate = slope(lambda u: sde.sigma(u) ** 2) - 2 * drift * sigma**2
        found |= {"drift": (sde.drift(t), drift), "diffusion": (sde.diffusion(t) ** 2, variance_rate.clamp(min=0))}
    for function, (given, follows) in found.items():
        wrong = ~torch.isclose(given, follows, rtol=1e-3, atol=1e-6 * (1 + follows.abs().max().item()))
        if wrong.any():
            k = int(wrong.nonzero()[0])
            power = "^2" if function == "diffusion" else ""
            raise ValueError(
                f"{name}: its {function}{power} at t = {t[k]:.3g} is {given[k]:.6g}, but {follows[k]:.6g} follows "
                f"from its alpha and sigma. {type(sde).__name__} must define `{function}` as well, or derive from "
                "`GaussianSDE`, which computes what follows."
            )
