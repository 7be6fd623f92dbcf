"""How a scheduler's configuration names an SDE and its parameters.

The name is looked up among all SDEs that are defined; the parameters are the arguments of its constructor, given in
`sde_parameters`. Those of the first SDEs have keys of their own as well, each of which goes to the SDEs that take it.
"""

import difflib
import inspect

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
            on values out of range.
    """
    cls = sde_class(argument, name)
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
    return cls(**parameters)
