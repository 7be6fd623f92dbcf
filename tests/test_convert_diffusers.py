"""Pipelines made with diffusers' own schedulers, converted. The Hub cannot be reached, so they are built here, with
the configurations of google/ddpm-cifar10-32 and google/ncsnpp-celebahq-256 at smaller widths and sizes."""

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DanceDiffusionPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    RePaintScheduler,
    ScoreSdeVeScheduler,
    UNet1DModel,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file

from sde_diffusers import (
    VESDE,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    fit_sampler,
)
from sde_diffusers.convert import from_diffusers, to_diffusers


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


@pytest.mark.parametrize(
    "bounds, key",
    [
        ({"clip_sample": True}, "clip_denoised"),
        ({"clip_sample": True, "clip_sample_range": 0.5}, "clip_denoised"),
        ({"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}, "sample_max_value"),
    ],
)
def test_bounds_on_x_0_go_there_and_back(bounds, key, tmp_path):
    """The images are DDIM's with the same bounds; likelihoods are not claimed for them."""
    ddim = DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", **bounds)
    pipe = DDIMPipeline(unet=ddpm_unet(), scheduler=ddim)
    converted = from_diffusers(pipe)
    exported = to_diffusers(converted, tmp_path / "exported").scheduler.config
    assert all(exported[name] == value for name, value in bounds.items())
    converted.scheduler = ScoreSdeExponentialScheduler.from_config(
        converted.scheduler.config, solver_order=1, time_grid="uniform", sampling_eps=0.1
    )
    for p in (pipe, converted):
        p.set_progress_bar_config(disable=True)
    ours = converted(2, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="pt").images
    theirs = pipe(
        2,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        use_clipped_model_output=True,  # the noise that fits x_0
    ).images
    torch.testing.assert_close(ours, torch.tensor(theirs).permute(0, 3, 1, 2), rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match=f"`{key}`.*from_config"):
        converted.bits_per_dim(torch.zeros(1, 3, 16, 16))


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
    for other in (None, ddpm_unet(), EDMEulerScheduler()):
        with pytest.raises(ValueError, match="`pipe_or_path` must be a pipeline of diffusers, .* but is [NUE]"):
            from_diffusers(other)


# Flow matching.


@pytest.mark.parametrize("cls", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_draws_the_same_images(cls, shift, tmp_path):
    """Euler's and Heun's steps through the sampling SDE's even times are diffusers', shift and labels included."""
    scheduler = cls(shift=shift)
    DDPMPipeline(unet=ddpm_unet(), scheduler=scheduler).save_pretrained(tmp_path)
    converted = from_diffusers(tmp_path)
    sampler = converted.scheduler
    assert (sampler.config.sde, sampler.parameterization.prediction_type) == ("flow", "velocity")
    method = "euler" if cls is FlowMatchEulerDiscreteScheduler else "heun"
    converted.scheduler = type(sampler).from_config(sampler.config, method=method)
    converted.set_progress_bar_config(disable=True)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = converted(2, num_inference_steps=8, latents=x, output_type="latent")
    scheduler.set_timesteps(8)
    theirs = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(converted.unet(theirs, t).sample, t, theirs).prev_sample
    torch.testing.assert_close(converted.scheduler.timesteps, scheduler.timesteps, rtol=1e-5, atol=1e-3)
    # Heun's first step from pure noise is taken in another variable, the same for shift 1 alone
    tolerance = 2e-3 if method == "euler" else 0.05
    torch.testing.assert_close(ours.images, theirs, rtol=0, atol=tolerance)


def test_a_flow_has_scores_and_likelihoods():
    """What diffusers adds as noise, and takes for the velocity, is what is taken here."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    converted = from_diffusers(DDPMPipeline(unet=ddpm_unet(), scheduler=scheduler))
    x_0, noise = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    t = scheduler.timesteps[[300]]
    noisy = scheduler.scale_noise(x_0, t, noise)
    torch.testing.assert_close(converted.scheduler.add_noise(x_0, noise, t), noisy, rtol=1e-5, atol=1e-5)
    time = converted.scheduler.sde.inverse_half_log_snr(converted.scheduler.training_sde.half_log_snr(t / 1000)).item()
    with torch.no_grad():
        velocity = converted.unet(noisy, t).sample
        denoised = noisy - t / 1000 * velocity
        torch.testing.assert_close(converted.denoise(noisy, time), denoised, rtol=1e-4, atol=1e-4)
    bits = converted.bits_per_dim(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), rtol=1e-2, atol=1e-2).bits_per_dim
    assert bits.isfinite().all()


@pytest.mark.parametrize(
    "scheduler, message",
    [
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "`use_dynamic_shifting`=True"),
        (FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True), "`use_karras_sigmas`=True"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "`invert_sigmas`=True"),
        (FlowMatchEulerDiscreteScheduler(shift_terminal=0.1), "`shift_terminal`=0.1"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "`stochastic_sampling`=True"),
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "`num_train_timesteps`=500.*must be 1000"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "`prediction_type`"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True), "`use_flow_sigmas`=True"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "`use_flow_sigmas`=True"),
        (DPMSolverMultistepScheduler(use_beta_sigmas=True), "`use_beta_sigmas`=True"),
        (EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"), "`timestep_type`"),
        (DDPMScheduler(variance_type="learned_range"), "`variance_type`='learned_range'"),
        (CogVideoXDDIMScheduler(rescale_betas_zero_snr=True), "`rescale_betas_zero_snr`"),
        (EulerDiscreteScheduler(interpolation_type="log_linear"), "`interpolation_type`='log_linear'"),
        (EulerDiscreteScheduler(use_karras_sigmas=True, sigma_max=80.0), "`sigma_max`=80.0"),
        (UniPCMultistepScheduler(use_karras_sigmas=True, sigma_min=0.002), "`sigma_min`=0.002"),
        (LCMScheduler(), "LCMScheduler.* distilled"),
        (IPNDMScheduler(), "IPNDMScheduler"),
    ],
)
def test_options_that_a_conversion_would_lose_are_named(scheduler, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(DDPMPipeline(unet=ddpm_unet(), scheduler=scheduler))


def shifted(scheduler):
    """As a user shifts the noise of a scheduler: its `betas` do not change."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod / (3 - 2 * scheduler.alphas_cumprod)
    return scheduler


BETAS = torch.linspace(5e-4, 0.1, 200).tolist()
TRAILING = {"timestep_spacing": "trailing", "clip_sample": False}


@pytest.mark.parametrize(
    "scheduler, options",
    [
        (EulerDiscreteScheduler(), {}),
        (EulerDiscreteScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear"), {}),
        (EulerDiscreteScheduler(prediction_type="sample", trained_betas=BETAS, num_train_timesteps=200), {}),
        (EulerDiscreteScheduler(use_karras_sigmas=True, prediction_type="sample"), {}),
        (EulerDiscreteScheduler(use_exponential_sigmas=True, prediction_type="sample"), {}),
        (HeunDiscreteScheduler(use_karras_sigmas=True, prediction_type="v_prediction"), {"method": "heun"}),
        (
            DDIMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2", **TRAILING),
            {"sampling_eps": 0.1},
        ),
        (CogVideoXDDIMScheduler(rescale_betas_zero_snr=False, **TRAILING), {"sampling_eps": 0.1}),
        (shifted(DDIMScheduler(**TRAILING)), {"sampling_eps": 0.1}),
    ],
)
def test_tables_draw_the_same_images(scheduler, options):
    """In the scheduler's own steps, where ours lie alike: its alphas, its labels, its prediction."""
    converted = from_diffusers(DDPMPipeline(unet=ddpm_unet(), scheduler=scheduler))
    grid = {} if converted.scheduler.config.time_grid else {"time_grid": "uniform"}
    config = converted.scheduler.config
    converted.scheduler = type(converted.scheduler).from_config(config, **{"method": "euler", **grid, **options})
    converted.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = converted(num_inference_steps=10, latents=noise, output_type="latent").images
    scheduler.set_timesteps(10)
    theirs = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = converted.unet(scheduler.scale_model_input(theirs, t), t).sample
            theirs = scheduler.step(output, t, theirs).prev_sample
    torch.testing.assert_close(converted.scheduler.timesteps.float(), scheduler.timesteps.float(), rtol=0, atol=0.05)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-3 * theirs.abs().max().item())


def test_a_shift_that_was_set_later(tmp_path):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_shift(4.0)
    converted = from_diffusers(DDPMPipeline(unet=torch.compile(ddpm_unet()), scheduler=scheduler))
    assert converted.scheduler.sde.shift == 4.0 and type(converted.unet) is UNet2DModel


@pytest.mark.parametrize("option, grid", [("use_karras_sigmas", "karras"), ("use_exponential_sigmas", "log_snr")])
def test_options_of_the_grid_become_ours(option, grid):
    scheduler = DPMSolverMultistepScheduler(**{option: True})
    assert from_diffusers(DDPMPipeline(unet=ddpm_unet(), scheduler=scheduler)).scheduler.time_grid == grid


@pytest.mark.parametrize(
    "options, message",
    [
        ({"time_embedding_type": "learned", "num_train_timesteps": 1000}, "`time_embedding_type`='learned'"),
        ({"class_embed_type": "timestep"}, "`class_embed_type`='timestep'"),
    ],
)
def test_networks_that_cannot_be_asked_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(DDPMPipeline(unet=ddpm_unet(**options), scheduler=DDPMScheduler()))
    with pytest.raises(ValueError, match="UNet1DModel"):
        from_diffusers(DanceDiffusionPipeline(UNet1DModel(sample_size=64), DDPMScheduler()))


@pytest.mark.parametrize("change", [lambda net: net.train(), lambda net: net.bfloat16()], ids=["training", "bfloat16"])
def test_recorded_answers_are_those_of_the_weights(change):
    """Whatever mode or precision the network is in when it is converted."""
    unet = ddpm_unet(dropout=0.5)
    x, labels = torch.randn(2, 3, 16, 16), torch.tensor([10, 500])
    with torch.no_grad():
        recorded = {"x": x, "labels": labels, "y": unet(x, labels).sample}
    pipe = DDPMPipeline(unet=change(unet), scheduler=DDPMScheduler())
    assert from_diffusers(pipe, recorded).unet is unet
    with pytest.raises(ValueError, match="does not answer as recorded"):
        from_diffusers(pipe, recorded | {"y": 1.2 * recorded["y"]})


def test_recorded_tensors_that_do_not_fit_are_named():
    pipe = DDPMPipeline(ddpm_unet(num_class_embeds=4), DDPMScheduler())
    asked = {"x": torch.randn(2, 3, 16, 16), "labels": torch.tensor([3, 500]), "class_labels": torch.tensor([0, 1])}
    recorded = asked | {"y": pipe.unet(*asked.values()).sample.detach()}
    from_diffusers(pipe, recorded | {"x": asked["x"].double()})
    misfits = {
        "`recorded` does not fit the network: Given groups": {"x": torch.zeros(2, 1, 16, 16)},
        r"recorded x must be .* is torch.float32 of shape \(0, 3, 16, 16\)": {"x": torch.zeros(0, 3, 16, 16)},
        "recorded x must be floating-point": {"x": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)},
        "recorded labels must be 2 noise levels": {"labels": torch.tensor([1, 2, 3])},
        "`recorded` does not fit the network: index out of range": {"class_labels": torch.tensor([0, 9])},
        "recorded class_labels must be 2 integers": {"class_labels": torch.tensor([0.0, 1.0])},
    }
    for message, change in misfits.items():
        with pytest.raises(ValueError, match=message):
            from_diffusers(pipe, recorded | change)


def test_weights_are_those_of_the_configuration(tmp_path):
    DDPMPipeline(ncsnpp_unet(), ScoreSdeVeScheduler()).save_pretrained(tmp_path)
    tensors = load_file(file := tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    for name, value, message in (
        ("conv_in.bias", torch.full((32,), torch.nan), "must be finite, but conv_in.bias is not"),
        ("extra", torch.ones(1), "unet are not those of its configuration, a UNet2DModel: extra left over"),
        ("conv_in.weight", None, "conv_in.weight missing"),
    ):
        save_file({k: v for k, v in (tensors | {name: value}).items() if v is not None}, file, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            from_diffusers(tmp_path)
    save_file(tensors | {"time_proj.W": torch.ones(32)}, file, {"format": "pt"})  # as diffusers once wrote
    assert torch.equal(from_diffusers(tmp_path).unet.time_proj.weight, tensors["time_proj.weight"])


def test_a_home_folder_and_a_swapped_scheduler(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ours = from_diffusers(DDPMPipeline(unet=ddpm_unet(), scheduler=DDPMScheduler()))
    to_diffusers(ours, "~/theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
    again = from_diffusers("~/theirs")
    again.save_pretrained("~/ours")
    assert ScoreSdePipeline.from_pretrained("~/ours").unet.config.sample_size == 16
    again.scheduler.save_pretrained("~/sampler")
    loaded = type(again.scheduler).from_pretrained("~/sampler")
    assert torch.equal(loaded.betas, again.scheduler.betas)
    assert not (tmp_path / "~").exists()
    again.scheduler = DDIMScheduler()
    for ask in (lambda: to_diffusers(again, tmp_path / "x"), lambda: fit_sampler(again, [2])):
        with pytest.raises(ValueError, match="`scheduler` must be one of sde_diffusers"):
            ask()
