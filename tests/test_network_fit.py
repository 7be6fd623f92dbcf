"""Networks are asked only for what they were built to answer: the pipeline's part, with values that show why."""

import pytest
import torch
from diffusers import UNet2DModel

from sde_diffusers import DenoisingScoreMatching, NCSNppUNet2DModel, ScoreSdePipeline, ScoreSdeProbabilityFlowScheduler
from sde_diffusers.convert import from_diffusers

TINY = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1, "fir": False}
TABLE = {"scale_by_sigma": True, "sigma_min": 0.01, "sigma_max": 10.0, "num_scales": 10}
VE = {"sde": "ve", "sigma_min": 0.01, "sigma_max": 10.0}


def network(**options):
    return NCSNppUNet2DModel(**{**TINY, "attention_resolutions": (), **options}).eval()


def diffusers_network(kind, **options):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    sizes = {key: TINY[key] for key in ("sample_size", "in_channels", "block_out_channels", "layers_per_block")}
    return UNet2DModel(**{"time_embedding_type": kind, **sizes, "out_channels": 1, **blocks, **options}).eval()


FITS = [
    ({"scale_by_sigma": True}, {"sde": "ve"}),
    ({"scale_by_sigma": False}, {"sde": "vp"}),
    ({"scale_by_sigma": False}, {"sde": "ve_exponential"}),
    ({"scale_by_sigma": False, "time_embedding_type": "positional"}, {"sde": "vp_discrete"}),
    ({"scale_by_sigma": False, "time_embedding_type": "positional"}, {**VE, "time_input": "index"}),
    (
        {"time_embedding_type": "positional", **TABLE},
        {**VE, "time_input": "index", "num_train_timesteps": 10, "prediction_type": "score"},
    ),
]
MISFITS = [
    ({"scale_by_sigma": True}, {"sde": "vp"}, "divides its output .* which then must be sigma, .* '999t'"),
    ({"scale_by_sigma": True}, {"sde": "ve_exponential"}, "which then must be sigma, .* 't'"),
    ({"scale_by_sigma": True}, {"sde": "vp_discrete"}, "which then must be sigma, .* 'index'"),
    ({"scale_by_sigma": False}, {"sde": "vp_discrete"}, "takes the logarithm .* 'index', which begins at 0"),
    ({"scale_by_sigma": False}, {**VE, "time_input": "index"}, "takes the logarithm .* 'index', which begins at 0"),
    ({"time_embedding_type": "positional", **TABLE}, VE, "noise level of an index .* is 'sigma'"),
    ({"time_embedding_type": "positional", **TABLE}, {"sde": "vp_discrete"}, "one of 10 levels .* 1000 noise levels"),
    (
        {"time_embedding_type": "positional", **TABLE},
        {**VE, "sigma_max": 20.0, "time_input": "index", "num_train_timesteps": 10},
        "10 levels from 10 to 0.01 .* 10 noise levels from 20 to 0.01",
    ),
    (
        {"scale_by_sigma": False, "preconditioning": "edm", "image_range": (-1, 1)},
        {"sde": "ve"},
        "`preconditioning`='edm' needs .* 'score' and 'sigma'",
    ),
]


@pytest.mark.parametrize(("options", "scheduler"), FITS)
def test_what_fits_answers(options, scheduler):
    pipe = ScoreSdePipeline(network(**options), ScoreSdeProbabilityFlowScheduler(**scheduler))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert images.isfinite().all()


@pytest.mark.parametrize(("options", "scheduler", "message"), MISFITS)
def test_what_does_not_fit_is_refused(options, scheduler, message):
    net, scheduler = network(**options), ScoreSdeProbabilityFlowScheduler(**scheduler)
    with pytest.raises(ValueError, match=message):
        ScoreSdePipeline(net, scheduler)(num_inference_steps=2)
    objective, x = DenoisingScoreMatching(scheduler.parameterization), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=message):
        objective(net, x, x, objective.draw_times(2))


def test_an_indexed_network_divides_by_the_schedulers_own_noise_levels():
    """The reason for comparing tables: index k stands for the same sigma on both sides."""
    net = network(time_embedding_type="positional", **TABLE, init_scale=1.0)
    plain = network(time_embedding_type="positional", scale_by_sigma=False, init_scale=1.0)
    plain.load_state_dict(net.state_dict())
    scheduler = ScoreSdeProbabilityFlowScheduler(**VE, time_input="index", num_train_timesteps=10)
    x, k = torch.randn(10, 1, 8, 8), torch.arange(10.0)
    sigma = scheduler.parameterization.sde.sigma(scheduler.parameterization.sde_time(k)).float()
    with torch.no_grad():
        torch.testing.assert_close(net(x, k).sample * sigma[:, None, None, None], plain(x, k).sample)


def test_networks_of_diffusers():
    """Their Fourier features come with the division, of which the configuration says nothing."""
    with pytest.raises(ValueError, match="every `UNet2DModel` of diffusers with `time_embedding_type`='fourier'"):
        ScoreSdePipeline(diffusers_network("fourier"), ScoreSdeProbabilityFlowScheduler(sde="vp"))(1, 2)
    ScoreSdePipeline(diffusers_network("fourier"), ScoreSdeProbabilityFlowScheduler(sde="ve"))(1, 2)
    ScoreSdePipeline(diffusers_network("positional"), ScoreSdeProbabilityFlowScheduler(sde="vp"))(1, 2)


def test_the_converter_refuses_as_well():
    from diffusers import DDPMPipeline, DDPMScheduler

    with pytest.raises(ValueError, match="which then must be sigma"):
        from_diffusers(DDPMPipeline(diffusers_network("fourier"), DDPMScheduler()))
    assert isinstance(from_diffusers(DDPMPipeline(diffusers_network("positional"), DDPMScheduler())), ScoreSdePipeline)


@pytest.mark.parametrize("option", [{"time_embedding_type": "learned"}, {"class_embed_type": "timestep"}])
def test_networks_that_are_asked_for_something_else_are_refused(option):
    net = diffusers_network("positional", num_train_timesteps=1000, **option)
    with pytest.raises(ValueError, match=f"{next(iter(option))}.* which it is not given here"):
        ScoreSdePipeline(net, ScoreSdeProbabilityFlowScheduler(sde="vp_discrete"))(1, 2)
