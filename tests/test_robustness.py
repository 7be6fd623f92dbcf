"""Any SDE, sampler, time grid and prediction type, at any precision, size and noise range: a property-based test.

The network is exact for Gaussian data, and its answer is rounded to the precision that is drawn.
"""

import pytest
import torch
from exact_scores import exact_output
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sde_diffusers import (
    ScoreSdeExponentialScheduler,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.schedulers.time_grids import TIME_GRIDS


class Pixels:
    """Data whose pixels are independent, N(0.2, 0.4^2)."""

    def score(self, sde, x, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return (0.2 * alpha - x.double()) / ((0.4 * alpha) ** 2 + sigma**2)

    def denoised(self, sde, x, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return 0.2 + alpha * 0.4**2 * (x.double() - 0.2 * alpha) / ((0.4 * alpha) ** 2 + sigma**2)


SAMPLERS = [
    *[
        (ScoreSdePredictorCorrectorScheduler, {"predictor": predictor, "corrector": corrector, "per_image_step": True})
        for predictor in ("reverse_diffusion", "euler_maruyama", "ancestral", "none")
        for corrector in ("langevin", "ald", "none")
        if (predictor, corrector) != ("none", "none")
    ],
    *[(ScoreSdeProbabilityFlowScheduler, {"method": m, "s_churn": c}) for m in ("euler", "heun") for c in (0.0, 5.0)],
    *[
        (ScoreSdeExponentialScheduler, {"solver_order": order, "eta": eta, "algorithm": algorithm})
        for order in (1, 2, 3)
        for eta in (0.0, 0.5, 1.0)
        for algorithm in ("data", "noise")
    ],
]
SDES = st.one_of(
    st.builds(
        lambda low, high: {"sde": "ve", "sigma_min": low, "sigma_max": high},
        st.sampled_from([1e-3, 0.01, 0.1]),
        st.sampled_from([1.0, 50.0, 1e4]),
    ),
    st.builds(lambda high: {"sde": "vp", "beta_max": high}, st.sampled_from([1.0, 20.0])),
    st.builds(lambda high: {"sde": "sub_vp", "beta_max": high}, st.sampled_from([1.0, 20.0])),
    st.builds(lambda sigma: {"sde": "ve_exponential", "sigma": sigma}, st.sampled_from([1.5, 25.0, 1e4])),
    st.just({"sde": "vp_discrete"}),
)
SIZES = [(1, 1, 1), (1, 7, 5), (4, 8, 8), (3, 32, 32)]
SWAPS = [None, None, "ve", "vp", "sub_vp"]


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(scheduler, size, seeds, steps, dtype):
    """Images (N, C, H, W), one for each seed; the network answers in `dtype`, the state is float32."""
    scheduler.set_timesteps(steps)
    x = torch.cat([torch.randn(1, *size, generator=g) for g in generators(seeds)]) * scheduler.init_noise_sigma
    own = generators([1000 + seed for seed in seeds])
    for t in scheduler.timesteps:
        output = exact_output(scheduler, Pixels(), scheduler.scale_model_input(x, t))
        limit = torch.finfo(dtype).max  # where a step was too long for the SDE, half precision would overflow
        x = scheduler.step(output.clamp(-limit, limit).to(dtype), t, x, generator=own).prev_sample
    return x


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    sampler=st.sampled_from(SAMPLERS),
    sde=SDES,
    sampling_sde=st.sampled_from(SWAPS),
    grid=st.sampled_from([None, *TIME_GRIDS]),
    prediction_type=st.sampled_from(["score", "epsilon", "sample", "v_prediction"]),
    final_denoise=st.booleans(),
    size=st.sampled_from(SIZES),
    steps=st.sampled_from([1, 2, 3, 10, 40]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 100),
)
def test_samplers_are_finite_reproducible_and_batch_independent(
    sampler, sde, sampling_sde, grid, prediction_type, final_denoise, size, steps, dtype, seed
):
    cls, options = sampler
    assume(final_denoise or grid != "few_steps")  # which is refused
    scheduler = cls(
        **sde,
        **options,
        sampling_sde=sampling_sde,
        time_grid=grid,
        prediction_type=prediction_type,
        final_denoise=final_denoise,
    )
    seeds = [seed, seed + 1, seed + 2]
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:  # too few for the noise that the solver would add
        assert "`eta`" in str(error) and options["eta"] > 0
        return
    images = draw(scheduler, size, seeds, steps, dtype)
    assert images.shape == (3, *size) and images.dtype == torch.float32
    assert images.isfinite().all()
    assert torch.equal(images, draw(scheduler, size, seeds, steps, dtype))  # the seeds say all
    alone = draw(scheduler, size, seeds[1:2], steps, dtype)
    torch.testing.assert_close(images[1:2], alone, rtol=1e-5, atol=1e-5)  # and neighbours nothing


@pytest.mark.parametrize(
    "sampler, sde",
    [(SAMPLERS[0], "ve"), (SAMPLERS[8], "vp"), (SAMPLERS[-1], "vp")],  # one of them with a corrector
)
def test_four_thousand_steps(sampler, sde):
    cls, options = sampler
    scheduler = cls(sde=sde, **options, prediction_type="sample")
    images = draw(scheduler, (4, 8, 8), range(2), 4000, torch.float32)
    assert images.isfinite().all()
    assert images.mean().item() == pytest.approx(0.2, abs=0.06)
    assert images.std().item() == pytest.approx(0.4, abs=0.06)


def test_langevin_steps_of_a_batch_and_of_each_image():
    """By default the paper's: an image depends on its neighbours. With `per_image_step` it does not."""
    for per_image, depends in ((False, True), (True, False)):
        scheduler = ScoreSdePredictorCorrectorScheduler(sde="ve", per_image_step=per_image)
        together = draw(scheduler, (1, 4, 4), [1, 2, 3], 20, torch.float32)
        alone = draw(scheduler, (1, 4, 4), [2], 20, torch.float32)
        assert torch.allclose(together[1:2], alone, rtol=1e-4, atol=1e-5) != depends


@pytest.mark.parametrize("per_image", [False, True])
def test_langevin_steps_survive_a_score_of_zero(per_image):
    scheduler = ScoreSdePredictorCorrectorScheduler(sde="ve", prediction_type="score", per_image_step=per_image)
    scheduler.set_timesteps(3)
    x = torch.ones(2, 1, 1, 1)
    assert scheduler.step(torch.zeros_like(x), scheduler.timesteps[0], x).prev_sample.isfinite().all()
