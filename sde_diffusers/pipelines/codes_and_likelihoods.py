"""What the probability flow ODE gives a pipeline: latent codes of images, ways between them, and likelihoods.

The mathematics is in `sde_diffusers/likelihood/`; these are the methods by which people ask for it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from sde_diffusers.class_names import Labels
from sde_diffusers.images import Images
from sde_diffusers.likelihood.latent_codes import (
    ProbabilityFlowOutput,
    decode_latents,
    encode_images,
    interpolate_images,
)
from sde_diffusers.likelihood.log_likelihood import LikelihoodOutput, LogProbOutput, image_bits_per_dim
from sde_diffusers.likelihood.log_probability import image_class_log_prob, image_log_prob
from sde_diffusers.likelihood.variational_bound import VariationalBoundOutput, image_variational_bound

Method = TypeVar("Method", bound=Callable)


def outside_inference_mode(method: Method) -> Method:
    """Leave `torch.inference_mode` for a method, with gradients asked for or not as before."""

    @functools.wraps(method)
    def run(*args, **kwargs):
        asked = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(asked):
            return method(*args, **kwargs)

    return cast(Method, run)


class CodesAndLikelihoodsMixin:
    """Latent codes and likelihoods, for pipelines with `unet` and `scheduler`.

    They work inside `torch.inference_mode`, too, which they leave meanwhile: no gradient passes its tensors.
    """

    @outside_inference_mode
    def encode(
        self,
        images: Images,
        class_labels: Labels = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        variable: str | None = None,
        return_dict: bool = False,
    ) -> Tensor | ProbabilityFlowOutput:
        """Latent codes of images: the probability flow ODE from `scheduler.sampling_eps` to t = 1.

        It is the network's own, also where the scheduler bounds E[x_0 | x_t] (`clip_denoised`).

        Args:
            images: as the pipeline returns them: PIL images, an array (N, H, W, C) or a tensor (N, C, H, W); uint8, or
                floating point in [0, 1].
            class_labels: as in `__call__`.
            rtol, atol: tolerances of the adaptive solver, relative to and in the units of its state: the network's
                images, or, in "noise_level", these divided by the deviation of images at that time.
            variable: what the solver steps in: "t", exactly as the paper's code, or "noise_level", a function of
                sigma / alpha in which fewer evaluations are as accurate. None takes the latter for denoisers
                (prediction type "sample"), tables (time input "index") and SDEs through a table, whose drift jumps in
                t and for which "t" is refused, and else, for the paper's networks and flows, "t".
            return_dict: whether to return a `ProbabilityFlowOutput`, which also reports evaluations and tolerances.

        Returns:
            (N, C, H, W) float32 codes. For likely images they resemble draws from the prior, whose standard deviation
            is `scheduler.start_sigma`; divided by it they can be given to `__call__` as `latents`.

        Raises:
            ValueError: on arguments of a wrong shape or out of range.
            RuntimeError: if the network's answers are not finite.
        """
        output = encode_images(self, images, class_labels, rtol, atol, variable)
        return output if return_dict else output.sample

    @outside_inference_mode
    def decode(
        self,
        latents: Tensor,
        class_labels: Labels = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        variable: str | None = None,
        return_dict: bool = False,
    ) -> Tensor | ProbabilityFlowOutput:
        """Inverse of `encode`: (N, C, H, W) latent codes to float32 images in the range [0, 1], but not clipped.

        There is no final denoising. Other arguments and errors are those of `encode`.
        """
        output = decode_latents(self, latents, class_labels, rtol, atol, variable)
        return output if return_dict else output.sample

    @outside_inference_mode
    def interpolate(
        self,
        a: Images,
        b: Images,
        steps: int,
        class_labels: Labels = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        variable: str | None = None,
        return_dict: bool = False,
    ) -> Tensor | ProbabilityFlowOutput:
        """Ways from images a[i] to b[i], spherical in the space of latent codes.

        Args:
            a, b: images as in `encode`.
            steps: number of images K >= 2 on each way, both ends included.

        Returns:
            (K, N, C, H, W) float32 images in the range [0, 1], not clipped. Other arguments and errors are those of
            `encode`; the labels hold for both ends and the way between them.
        """
        output = interpolate_images(self, a, b, steps, class_labels, rtol, atol, variable)
        return output if return_dict else output.sample

    @outside_inference_mode
    def bits_per_dim(
        self,
        images: Images,
        generator: torch.Generator | list[torch.Generator] | None = None,
        dequantize: bool | int | str | None = None,
        probes: int | str | Tensor = 1,
        eps: float | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        class_labels: Labels = None,
        probe_distribution: str = "rademacher",
        levels: int | None = None,
        variable: str | None = None,
        passes: int | None = None,
        importance_weighted: bool = False,
    ) -> LikelihoodOutput:
        """Negative log-likelihood of images in bits per dimension, by the probability flow ODE (section D.2).

        Args:
            images: as the pipeline returns them: PIL images, an array (N, H, W, C) or a tensor (N, C, H, W); integers
                of the data's own range, [0, levels) (uint8 by default), or floating point in [0, 1].
            generator: source of dequantization noise and probes, or a list of N, so that each image has its own.
            dequantize: "uniform" (also True, and None where there are levels): noise u in
                (round((levels - 1) image) + u) / levels, whose average bounds the discrete likelihood; a number is
                that of such passes. "truncated_normal": the bound of arXiv 2305.03935, see
                `dequantization.py`. False: the density at the given values, which must then have been dequantized for
                the result to be comparable.
            probes: number of random probes of the trace estimator (new ones at three noise levels), given ones
                (N, C, H, W) or (P, N, C, H, W), or "exact" for the full trace, with as many vector-Jacobian products
                as an image has dimensions.
            eps: time that stands for the images, in (0, 1); raised to the earliest one that the SDE and the network
                know where they start later (DDPM tables, another SDE than the training's). None = 1e-5, or for
                "truncated_normal" where half a bin is three deviations of the noise.
            rtol, atol, variable: see `encode`. As in the paper's code, the log-likelihood in nats is one more number
                of the state, whose root mean square the tolerances bound in each step; with `probes="exact"` a tenth
                of them is used. All images take the same steps: at tolerances far above the default an image's
                value differs with those beside it, by as much as it differs with the tolerance.
            class_labels: as in `__call__`; the likelihood is then that given the class.
            probe_distribution: "rademacher" (of less variance) or "gaussian".
            levels: number of values of a pixel, 2^(bit depth), at most 2^32; None = as the data of the network has it
                (256 for 8 bits). Floating-point data have none: the result is then that of their density in their own
                units.
            passes: number of draws of the dequantization's noise, whose bounds are averaged.
            importance_weighted: take the tighter bound of all passes together instead (arXiv 1509.00519); only with
                `probes="exact"`.

        Returns:
            `LikelihoodOutput`, in the first place `.bits_per_dim` (N,).

        Raises:
            ValueError: on arguments of a wrong shape or out of range; if the scheduler bounds E[x_0 | x_t]
                (`clip_denoised`, dynamic thresholding), since what it draws has another density.
            RuntimeError: if the network's answers are not finite.

        Examples:
            >>> result = pipe.bits_per_dim(pipe(4, output_type="pt").images, torch.Generator().manual_seed(0))
            >>> print(result.bits_per_dim, result.nfe)
        """
        return image_bits_per_dim(
            self,
            images,
            class_labels=class_labels,
            generator=generator,
            dequantize=dequantize,
            passes=passes,
            importance_weighted=importance_weighted,
            probes=probes,
            probe_distribution=probe_distribution,
            levels=levels,
            eps=eps,
            rtol=rtol,
            atol=atol,
            variable=variable,
        )

    @outside_inference_mode
    def variational_bound(
        self,
        images: Images,
        generator: torch.Generator | list[torch.Generator] | None = None,
        draws: int = 32,
        passes: int = 1,
        class_labels: Labels = None,
        levels: int | None = None,
        eps: float | None = None,
    ) -> VariationalBoundOutput:
        """The variational bound on bits per dimension, of the SDE's samples (arXiv 2107.00630, and 2101.09258).

        A bound on another model than `bits_per_dim` has: that of the reverse-time SDE, not of the ODE. See
        `variational_bound.py`.

        Args:
            images, generator, class_labels, levels: as in `bits_per_dim`; images must have levels.
            draws: number of noise levels, one in each of as many strata: evaluations of the network.
            passes: number of such estimates, whose differences show what the drawing causes.
            eps: time at which a pixel is read off by its nearest levels; None = that of "truncated_normal".

        Returns:
            `VariationalBoundOutput`, in the first place `.bits_per_dim` (N,).

        Raises:
            ValueError: on arguments of a wrong shape or out of range, and as `bits_per_dim`.
        """
        return image_variational_bound(self, images, class_labels, generator, draws, passes, levels, eps)

    @outside_inference_mode
    def log_prob(
        self,
        x: Images,
        class_labels: Labels = None,
        probes: int | str | Tensor = 1,
        levels: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        dequantize: bool | int | str | None = None,
        passes: int | None = None,
        importance_weighted: bool = False,
        eps: float | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        probe_distribution: str = "rademacher",
        variable: str | None = None,
    ) -> LogProbOutput:
        """Log-density of data in nats, by the probability flow ODE (section D.2).

        Args:
            x: floating point, in the units of the data (`pixel_format`, from `low` to `high`, but not bound to lie
                between them): the result is the log-density per these units. A tensor that requires a gradient gets
                one, that of the solution as it was computed (`density_gradient.py`), in several times the time, the
                memory of one evaluation with second derivatives and one image for each step; the probes stay the
                same all the way, and there are no second derivatives. The lengths of the steps count as given, so
                that at loose tolerances it is not near the density's own. Integers, of the data's range or of
                `levels`: the result is a bound on the log-probability of each image, as in `bits_per_dim`.
            Others: as in `bits_per_dim`.

        Returns:
            `LogProbOutput`, in the first place `.log_prob` (N,), `.standard_errors` and `.nfe`.

        Raises:
            ValueError, RuntimeError: as `bits_per_dim`; ValueError on a gradient through half precision.
        """
        return image_log_prob(
            self,
            x,
            class_labels=class_labels,
            probes=probes,
            levels=levels,
            generator=generator,
            dequantize=dequantize,
            passes=passes,
            importance_weighted=importance_weighted,
            eps=eps,
            rtol=rtol,
            atol=atol,
            probe_distribution=probe_distribution,
            variable=variable,
        )

    @outside_inference_mode
    def class_log_prob(
        self,
        x: Images,
        class_priors: Sequence[float] | Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **options,
    ) -> Tensor:
        """Log-probabilities log p(class | x) of the classes, the network being a generative classifier (Bayes' rule).

        Args:
            x: as in `log_prob`.
            class_priors: (classes,) probabilities that sum to 1; None: all equal.
            generator: source of noise, which is the same for all classes, and stays as it is.
            options: as in `log_prob`.

        Returns:
            (N, classes) float64 in nats.

        Raises:
            ValueError: for a network without classes, priors that are none, or as in `log_prob`.
            TypeError: on options that `log_prob` has not.
        """
        return image_class_log_prob(self, x, class_priors, generator, **options)
