"""Samplers fitted to a network: they err less on latents that the fit did not see, and go with the pipeline."""

import copy
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from loopback_hub import LoopbackHub
from test_likelihood import ExactNetwork, ExactPipeline, small_pipeline
from warm_python import run_python

from sde_diffusers import ScoreSdeExponentialScheduler, ScoreSdePipeline, fit_sampler
from sde_diffusers.convert import from_diffusers
from sde_diffusers.fitting.fit_error import FitError
from sde_diffusers.hub.push import push_model

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from few_step_samplers import GAUSSIAN, MIXTURE  # noqa: E402

# A sampler of two steps, in numbers that are easily followed.
FITS = {
    "network": {"float16": "0" * 8, "bfloat16": "0" * 8},
    "guidance": {"guidance_scale": 1.0, "guide_scale": 1.0, "classifier_scale": 0.0, "interval": None},
    "settings": "",
    "steps": {
        "2": {
            "levels": [4.0, 0.5],
            "state": [0.25, 0.5],
            "estimates": [[0.75], [-0.5, 1.0]],
            "error": 0.1,
            "default_error": 0.2,
        }
    },
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def with_fits(**options):
    """A scheduler with FITS for its settings."""
    from sde_diffusers.schedulers.fitted_steps import settings_digest

    plain = ScoreSdeExponentialScheduler(**options)
    return ScoreSdeExponentialScheduler.from_config(plain.config, fits=FITS | {"settings": settings_digest(plain)})


@pytest.mark.parametrize("sde", ["ve", "vp", "sub_vp", "flow"])
@pytest.mark.parametrize("sampling_sde", [None, "vp"])
def test_fitted_steps_are_the_equations(sde, sampling_sde):
    """In y = x / alpha: y_2 = y_1 / 4 + 3 / 4 D_1, x_0 = y_2 / 2 - D_1 / 2 + D_2, whatever the SDE."""
    scheduler = with_fits(sde=sde, sampling_sde=sampling_sde, prediction_type="sample")
    scheduler.set_timesteps(2)
    levels = (-scheduler.sde.half_log_snr(scheduler.times)).exp()
    torch.testing.assert_close(levels, torch.tensor([4.0, 0.5]).double())
    z, first, second = torch.randn(3, 2, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    x = z * scheduler.init_noise_sigma
    for t, answer in zip(scheduler.timesteps, (first, second), strict=True):
        x = scheduler.step(answer, t, x).prev_sample
    torch.testing.assert_close(x, (z + 0.75 * first) / 2 - first / 2 + second)
    scheduler.set_timesteps(3)  # its own
    assert scheduler.fit is None and scheduler.init_noise_sigma == scheduler.start_sigma
    scheduler.set_timesteps(2)
    scheduler.start_late(1)  # from an image: no estimate stands behind it
    assert scheduler.fit is None and scheduler.step_index == 1


def test_codes_leave_a_sampling_under_way_alone():
    pipe = small_pipeline()
    pipe.scheduler = with_fits(
        sde="ve", sigma_max=80.0, prediction_type="sample", time_input="sigma", image_range=(-1, 1)
    )
    pipe.set_progress_bar_config(disable=True)
    image = torch.full((1, 1, 8, 8), 0.5)

    def encode(pipe, *_):
        pipe.encode(image, rtol=1e-2, atol=1e-2)

    drawn = [
        pipe(1, 2, generator=seeded(), output_type="pt", callback_on_step_end=callback).images
        for callback in (None, encode)
    ]
    assert torch.equal(*drawn)
    encode(pipe)  # now they have the deviation that the scheduler tells
    assert pipe.scheduler.fit is None and pipe.scheduler.init_noise_sigma == pipe.scheduler.start_sigma


def test_fits_are_for_their_settings():
    scheduler = with_fits(sde="ve", eta=1.0)
    for changes, fitted in [({}, True), ({"eta": 0.0}, False), ({"sampling_sde": "vp"}, False)]:
        other = ScoreSdeExponentialScheduler.from_config(scheduler.config, **changes)
        other.set_timesteps(2)
        assert (other.fit is not None) == fitted and other.config.fits == scheduler.config.fits


@pytest.mark.parametrize(
    "change",
    [{"levels": [0.5, 4.0]}, {"levels": [4.0]}, {"estimates": [[1.0], [1.0]]}, {"state": [0.1, float("nan")]}],
)
def test_fits_that_are_none_are_refused(change):
    entry = FITS["steps"]["2"] | change
    with pytest.raises(ValueError, match="`fits`"):
        ScoreSdeExponentialScheduler(fits=FITS | {"steps": {"2": entry}})
    with pytest.raises(ValueError, match="`fits`"):
        ScoreSdeExponentialScheduler(fits={"steps": {}})


def test_the_error_sees_haze_and_blur():
    """Noise of 0.03 on flat images, which pixels hardly see, errs about as the loss of half of a texture does."""
    flat, texture = torch.zeros(8, 1, 16, 16), torch.randn(8, 1, 16, 16, generator=seeded())
    haze = FitError(flat, 1.0)(flat + 0.03 * torch.randn(flat.shape, generator=seeded(1)))
    blur = FitError(texture, 1.0)(texture / 2)
    assert FitError(flat, 1.0)(flat).norm() == 0
    assert 0.2 < haze.norm() / blur.norm() < 1


@pytest.mark.parametrize("data, d", [(GAUSSIAN, 64), (MIXTURE, 2)], ids=["gaussian", "mixture"])
def test_exact_networks_gain(data, d):
    """Five evaluations: at most half of the default's error, beside the solution of the ODE from other latents."""
    default = ScoreSdeExponentialScheduler(sde="vp_discrete")
    pipe = ExactPipeline(ExactNetwork(data, default, d), default)
    fitted = fit_sampler(pipe, 5, seeded(), num_latents=128)
    z = torch.randn(1000, d, 1, 1, generator=seeded(1))

    def images(scheduler, steps):
        pipe = ExactPipeline(ExactNetwork(data, scheduler, d), scheduler)
        return pipe(len(z), steps, latents=z, output_type="latent").images

    solution = images(default, 100)
    errors = [(images(scheduler, 5) - solution).square().mean().sqrt().item() for scheduler in (fitted, default)]
    assert fitted.fit is not None and errors[0] < 0.5 * errors[1], errors


@pytest.fixture(scope="module")
def converted():
    """A small DDPMPipeline, trained for a moment on gradients of gray, converted; with its fit for three steps."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    noising, optimizer = DDPMScheduler(), torch.optim.Adam(unet.parameters(), 2e-3)
    ramp = torch.linspace(-1, 1, 8)
    for _ in range(75):
        slopes = torch.randn(2, 32, 1, 1, 1)
        x_0 = (0.7 * (slopes[0] * ramp + slopes[1] * ramp[:, None])).clamp(-1, 1)
        noise, t = torch.randn_like(x_0), torch.randint(1000, (32,))
        loss = (unet(noising.add_noise(x_0, noise, t), t).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pipe = from_diffusers(DDPMPipeline(unet.eval(), noising))
    pipe.set_progress_bar_config(disable=True)
    fits = []
    pipe.scheduler = fit_sampler(pipe, 3, seeded(), num_latents=32, solution_steps=12, on_fit=fits.append)
    return pipe, fits


def test_levels_alone(converted):
    """The coefficients are then the solver's: steps from one noise level to the next, at the end the last answer."""
    options = {"num_latents": 16, "solution_steps": 12, "coefficients": False}
    fit = fit_sampler(converted[0], 2, seeded(), **options).config.fits["steps"]["2"]
    ratio = fit["levels"][1] / fit["levels"][0]
    assert fit["state"] == pytest.approx([ratio, 0.0], abs=1e-4) and fit["estimates"][1] == [0.0, 1.0]
    assert fit["estimates"][0] == pytest.approx([1 - ratio], abs=1e-4)


def test_a_converted_pipeline_gains(converted):
    pipe, (fit,) = converted
    assert fit.stored and fit.error < 0.8 * fit.default_error
    assert pipe.scheduler.config.fits["steps"]["3"]["levels"] == fit.numbers["levels"]
    assert {name: images.shape for name, images in fit.images.items()}["fitted"] == (16, 1, 8, 8)


WITHOUT_THE_PACKAGE = """
import sys

import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
z = torch.load(sys.argv[2])
torch.save(pipe(len(z), 3, latents=z, output_type="pt").images, sys.argv[3])
assert pipe.scheduler.fit is not None
"""


def test_fits_survive_the_hub_without_the_package(converted, tmp_path, monkeypatch):
    """Save, push, pull: the same images, bit for bit, with the package and by the repository's own code alone."""
    pipe, _ = converted
    z = torch.randn(2, 1, 8, 8, generator=seeded())
    expected = pipe(2, 3, latents=z, output_type="pt").images
    torch.save(z, tmp_path / "z.pt")
    pipe.save_pretrained(tmp_path / "saved")
    with LoopbackHub() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        push_model(tmp_path / "saved", "tester/fitted")
        pulled = ScoreSdePipeline.from_pretrained("tester/fitted")
        environment = hub.environment(tmp_path / "other_home") | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        paths = [tmp_path / "z.pt", tmp_path / "without.pt"]
        arguments = ["-c", WITHOUT_THE_PACKAGE, "tester/fitted", *paths]
        done = run_python(arguments, environment, tmp_path, without=["sde_diffusers"])
    assert done.returncode == 0, done.stderr
    pulled.set_progress_bar_config(disable=True)
    assert torch.equal(pulled(2, 3, latents=z, output_type="pt").images, expected) and pulled.scheduler.fit is not None
    assert torch.equal(torch.load(tmp_path / "without.pt"), expected)


def test_other_weights_and_guidance_are_warned_of(converted, tmp_path, caplog):
    pipe, _ = converted
    pipe.save_pretrained(tmp_path)
    pipe = ScoreSdePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)

    def warnings(**options):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            pipe(1, 3, output_type="latent", **options)
        return [record.message for record in caplog.records if "fitted" in record.message]

    assert not warnings()
    pipe.to(torch.bfloat16)  # the same in fewer bits
    assert not warnings()
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(1.1)
    (message,) = warnings()
    assert "weights" in message
    pipe.scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, fits=FITS | {
        "settings": pipe.scheduler.config.fits["settings"], "guidance": {"guidance_scale": 2.0},
        "steps": {"3": pipe.scheduler.config.fits["steps"]["3"]},
    })  # fmt: skip
    assert sorted("guidance" in message for message in warnings()) == [False, True]


@pytest.mark.parametrize(
    "options, name",
    [({"steps": (1, 2)}, "steps"), ({"steps": 20}, "steps"), ({"num_latents": 2}, "num_latents"),
     ({"batch_size": 0}, "batch_size"), ({"guidance_scale": 2.0}, "guidance_scale"), ({"on_fit": 5}, "on_fit")],
)  # fmt: skip
def test_bad_arguments_are_refused(converted, options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        fit_sampler(converted[0], **options)


def test_a_fit_ends_at_the_data(converted):
    pipe = copy.copy(converted[0])
    pipe.scheduler = ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, final_denoise=False)
    with pytest.raises(ValueError, match="`final_denoise` of the scheduler must be True"):
        fit_sampler(pipe, steps=[2])


def test_the_command_stores_what_gains(converted, tmp_path, capsys):
    from sde_diffusers.cli import main

    pipe, _ = converted
    folder, picture = tmp_path / "model", tmp_path / "fit.png"
    pipe.save_pretrained(folder)
    arguments = [folder, "--steps", "2", "--latents", "16", "--device", "cpu", "--picture", picture, "--json"]
    assert main(["fit-sampler", *map(str, arguments)]) == 0
    printed = json.loads(capsys.readouterr().out)
    (report,) = printed["fits"]
    assert printed["output"] == str(folder)
    stored = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["fits"]["steps"]
    assert report["stored"] and report["numbers"]["levels"] == stored["2"]["levels"]
    assert sorted(stored) == ["2", "3"] and picture.exists()  # that for three steps stays
