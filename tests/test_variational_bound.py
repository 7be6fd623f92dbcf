"""The variational bound, against sums over all images."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from exact_scores import as_images
from test_likelihood import ExactNetwork, ExactPipeline, small_pipeline

from sde_diffusers import ScoreSdeProbabilityFlowScheduler
from sde_diffusers.likelihood.variational_bound import _decoding_nats

LEVELS = 4
IMAGES = torch.tensor([[0, 0, 0], [3, 1, 0], [2, 2, 3]])
PROBABILITIES = [0.6, 0.3, 0.1]


class Denoiser(ExactNetwork):
    """Of data at `IMAGES`, at times (N,)."""

    def forward(self, x, network_time, class_labels=None):
        p, values = self.scheduler.parameterization, IMAGES.double() / (LEVELS - 1)
        t = p.sde_time(network_time)
        alpha, sigma = p.kernel(x, t)
        distance = (x - alpha * values.T[:, None]).square().sum(1).flatten(1)  # (N, 3, 1, 3) -> (N, 3)
        weights = (torch.tensor(PROBABILITIES).double().log() - distance / (2 * sigma.flatten(1) ** 2)).softmax(1)
        x_0 = as_images(weights @ values)
        return SimpleNamespace(sample=p.target(x_0, (x - alpha * x_0) / sigma, t))


@pytest.mark.parametrize("sde", ["ve", "vp", "sub_vp", "flow"])
def test_an_exact_denoiser_makes_it_an_equation_for_each_image(sde):
    scheduler = ScoreSdeProbabilityFlowScheduler(sde=sde, image_range=(0.0, 1.0))
    pipe = ExactPipeline(Denoiser(None, scheduler, 3), scheduler)
    copies = 400
    given = {"levels": LEVELS, "draws": 250, "generator": torch.Generator().manual_seed(0)}
    output = pipe.variational_bound(as_images(IMAGES.repeat_interleave(copies, 0)), **given)
    found = output.bits_per_dim.view(3, copies)
    expected = -torch.tensor(PROBABILITIES).double().log2() / 3
    assert torch.allclose(found.mean(1), expected, rtol=0, atol=0.05)
    assert (found.std(1) / math.sqrt(copies) < 0.02).all() and output.nfe == 250
    terms = output.prior + output.diffusion + output.reconstruction
    torch.testing.assert_close(terms, output.bits_per_dim)


def test_passes_and_list_of_generators():
    pipe = small_pipeline(torch.float32)
    images = torch.randint(256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def bound(images, seeds, **given):
        return pipe.variational_bound(images, [torch.Generator().manual_seed(s) for s in seeds], draws=4, **given)

    output = bound(images, (0, 1, 2), passes=2)
    assert output.estimates.shape == (2, 1, 3) and output.nfe == 8
    torch.testing.assert_close(
        bound(images[2:], (2,), passes=2).estimates, output.estimates[..., 2:], rtol=1e-5, atol=0
    )
    assert output.standard_error["probe"] == 0 < output.standard_error["dequantization"]
    for given, message in (({"draws": 0}, "`draws` must be"), ({"passes": 1.5}, "`passes` must be")):
        with pytest.raises(ValueError, match=message):
            pipe.variational_bound(images, **given)


@pytest.mark.parametrize("levels", [2, 256, 2**32])
def test_pixels_read_off_where_all_is_noise_cost_the_whole_depth(levels):
    """However wide the noise is, and however many levels: as many candidates as there are, at once if they are dense.

    `sde="ve"` ends at a deviation of 10; a range of 2 leaves a hundredth of a nat."""
    images = torch.randint(levels, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    given = {"draws": 1, "levels": levels, "generator": torch.Generator().manual_seed(0)}
    output = small_pipeline().variational_bound(images, eps=0.999, **given)
    assert abs(output.reconstruction.item() * math.log(2) - math.log(levels)) < 2e-2


def test_dense_levels_are_integrated():
    """Against the sum over all of them."""
    values = torch.tensor([0, 3, 400, 2000, 2047], dtype=torch.float64).view(5, 1, 1, 1)
    noise = torch.linspace(-3, 3, 11, dtype=torch.float64).view(1, 1, 1, 11).expand(5, 1, 1, 11)
    s, found = 320.0, []
    for column in range(11):
        found.append(_decoding_nats(values, s, 2048, noise[..., column : column + 1]))
    candidates = torch.arange(2048, dtype=torch.float64)
    z = (values + s * noise)[:, 0, 0, :, None] / s - candidates / s
    expected = (-0.5 * z.square()).logsumexp(2) + 0.5 * noise[:, 0, 0].square()
    torch.testing.assert_close(torch.stack(found, 1), expected, rtol=0, atol=5e-6)


def test_the_prior_from_which_sampling_starts_is_what_counts():
    """A short VP SDE ends far from it: the bound lies above, as far as the divergence of the two is."""
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="vp", beta_max=1.0, image_range=(0.0, 1.0))
    pipe = ExactPipeline(Denoiser(None, scheduler, 3), scheduler)
    output = pipe.variational_bound(as_images(IMAGES), levels=LEVELS, draws=1)
    alpha, sigma = (f(torch.tensor(1.0, dtype=torch.float64)) for f in (scheduler.sde.alpha, scheduler.sde.sigma))
    end = torch.distributions.Normal(alpha * IMAGES.double() / (LEVELS - 1), sigma)
    divergence = torch.distributions.kl_divergence(end, torch.distributions.Normal(0.0, scheduler.start_sigma))
    torch.testing.assert_close(output.prior, divergence.sum(1) / 3 / math.log(2))


def test_an_sde_that_ends_before_the_levels_are_as_noise():
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="ve", sigma_max=0.2, image_range=(-1.0, 1.0))
    pipe = ExactPipeline(Denoiser(None, scheduler, 3), scheduler)
    for ask in (pipe.variational_bound, partial(pipe.bits_per_dim, dequantize="truncated_normal")):
        with pytest.raises(ValueError, match="`levels`=2 lie so far apart"):
            ask(as_images(IMAGES.clamp(max=1)), levels=2)
