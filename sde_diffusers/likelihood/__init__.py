"""How likely images are under a model, and their codes.

    log_likelihood      bits/dim and log-densities by the probability flow ODE, with their standard errors
    variational_bound   the SDE's bound on them
    log_probability     of data in their own units, of classes
    latent_codes        images to codes and back, and what lies between two of them

What these stand on, from the ground up: `ode` solves; `probability_flow` is the equation, with the change of volume
that `probes` estimate; `density_gradient` differentiates it; `dequantization` gives integers a density; `questions`
reads what was asked.
"""

from sde_diffusers.likelihood.log_likelihood import LikelihoodOutput, LogProbOutput, standard_errors
from sde_diffusers.likelihood.questions import likelihood_start

__all__ = ["LikelihoodOutput", "LogProbOutput", "likelihood_start", "standard_errors"]
