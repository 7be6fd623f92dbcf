"""Pipelines made with diffusers' own schedulers, converted. The Hub cannot be reached, so they are built here, with
the configurations of google/ddpm-cifar10-32 and google/ncsnpp-celebahq-256 at smaller widths and sizes."""

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    RePaintScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
)

from sde_diffusers import (
    VESDE,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.convert import from_diffusers


def ddpm_unet(**options):
    """google/ddpm-cifar10-32, 8 instead of 128 channels, 16 x 16 pixels."""
    torch.manual_seed(0)
    config = dict(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=8,
        attention_head_dim=None,
    )
    return UNet2DModel(**{**config, **options}).eval()


def ncsnpp_unet():
    """google/ncsnpp-celebahq-256, narrow (its blocks need widths above 32) and 32 x 32 pixels."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        layers_per_block=1,
        center_input_sample=True,
        time_embedding_type="fourier",
        freq_shift=0,
        flip_sin_to_cos=True,
        mid_block_scale_factor=1.41421356237,
        norm_eps=1e-6,
        attention_head_dim=None,
        norm_num_groups=None,
    ).eval()


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim_draws_the_same_images(beta_schedule, prediction_type):
    """The converted pipeline's Euler steps on DDIM's own times are DDIM."""
    ddim = DDIMScheduler(
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    pipe = DDIMPipeline(unet=ddpm_unet(), scheduler=ddim)
    converted = from_diffusers(pipe)
    assert isinstance(converted, ScoreSdePipeline) and converted.unet is pipe.unet
    converted.scheduler = ScoreSdeProbabilityFlowScheduler.from_config(
        converted.scheduler.config, method="euler", time_grid="uniform", sampling_eps=0.1
    )
    for p in (pipe, converted):
        p.set_progress_bar_config(disable=True)
    ours = converted(2, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="pt")
    theirs = pipe(2, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="np").images
    torch.testing.assert_close(ours.images, torch.tensor(theirs).permute(0, 3, 1, 2), rtol=0, atol=2e-3)
    assert ours.nfe == 10


@pytest.mark.parametrize("cls", [ScoreSdePredictorCorrectorScheduler, ScoreSdeProbabilityFlowScheduler])
def test_every_sampler_runs_from_a_saved_folder(cls, tmp_path):
    DDPMPipeline(unet=ddpm_unet(), scheduler=DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    converted = from_diffusers(tmp_path / "ddpm")
    converted.save_pretrained(tmp_path / "ours")
    again = ScoreSdePipeline.from_pretrained(tmp_path / "ours")
    again.scheduler = cls.from_config(again.scheduler.config)
    again.set_progress_bar_config(disable=True)
    images = again(2, num_inference_steps=20, output_type="pt").images
    assert torch.isfinite(images).all()
    table = DDPMScheduler().alphas_cumprod.double().sqrt()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(again.scheduler.sde.alpha(t), table, rtol=1e-5, atol=1e-7)


def test_score_sde_ve():
    unet = ncsnpp_unet()
    scheduler = ScoreSdeVeScheduler(sigma_max=90.0, snr=0.1, correct_steps=2)
    pipe = DDPMPipeline(unet=unet, scheduler=scheduler)  # any pipeline with these two components
    converted = from_diffusers(pipe)
    sampler = converted.scheduler
    assert isinstance(sampler.sde, VESDE) and sampler.sde.sigma_max == 90.0
    assert sampler.config.snr == 0.1 and sampler.config.corrector_steps == 2
    # What diffusers' own VE pipeline takes for the score, sigma in, is the score here.
    x, t = torch.rand(2, 3, 32, 32), 0.5
    sigma = sampler.sde.sigma(torch.tensor(t, dtype=torch.float64)).float()
    with torch.no_grad():
        theirs = unet(x, sigma * torch.ones(2)).sample
        torch.testing.assert_close(converted.score(x, t), theirs, rtol=1e-4, atol=1e-5)
    converted.set_progress_bar_config(disable=True)
    assert torch.isfinite(converted(1, num_inference_steps=3, output_type="pt").images).all()


def test_a_scheduler_without_prediction_type_predicts_noise():
    converted = from_diffusers(DDPMPipeline(unet=ddpm_unet(), scheduler=RePaintScheduler()))
    assert converted.scheduler.parameterization.prediction_type == "epsilon"


def test_what_cannot_be_converted_is_refused():
    zero_snr = DDIMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="signal-to-noise ratio is zero"):
        from_diffusers(DDIMPipeline(unet=ddpm_unet(), scheduler=zero_snr))
    with pytest.raises(ValueError, match="variances"):
        from_diffusers(DDPMPipeline(unet=ddpm_unet(out_channels=6), scheduler=DDPMScheduler()))
    with pytest.raises(ValueError, match="EDMEulerScheduler"):
        from_diffusers(DDPMPipeline(unet=ddpm_unet(), scheduler=EDMEulerScheduler()))
