"""What is accepted as it comes from the pipelines, and what is refused with words that say what is allowed."""

import inspect
import json
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import sde_diffusers
from sde_diffusers import (
    DenoisingScoreMatching,
    NCSNppUNet2DModel,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    fit_sampler,
    operators,
    posteriors,
)
from sde_diffusers.operators import Convolution

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    unet = NCSNppUNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        scale_by_sigma=False,
        num_class_embeds=2,
        class_names=["bag", "ankle boot"],
    )
    pipe = ScoreSdePipeline(unet=unet.eval(), scheduler=ScoreSdeExponentialScheduler(sde="vp"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("form", [list, tuple, lambda pictures: np.stack(pictures)[..., None]])
def test_likelihoods_and_codes_of_what_the_pipeline_returns(pipe, form):
    """The same as of the 8-bit tensor; a picture alone is one of one."""
    values = torch.arange(128, dtype=torch.uint8).view(2, 1, 8, 8)
    pictures = [Image.fromarray(image[0].numpy()) for image in values]
    how = {"rtol": 0.1, "atol": 0.1, "class_labels": "bag"}
    expected = pipe.encode(values, **how)
    assert torch.equal(pipe.encode(form(pictures), **how), expected)
    assert pipe.encode(pictures[0], **how).shape == (1, 1, 8, 8)
    likelihoods = [
        pipe.bits_per_dim(images, generator=torch.Generator().manual_seed(0), **how).bits_per_dim
        for images in (values, form(pictures))
    ]
    assert torch.equal(*likelihoods)


@pytest.mark.parametrize("images", [[], "picture.png", [1, 2], np.zeros((2, 8, 8, 3)), Image.new("L", (8, 8)).load()])
def test_what_is_no_image(pipe, images):
    with pytest.raises(ValueError, match="`images` must"):
        pipe.encode(images)


def test_the_score_of_what_is_no_image_or_at_no_time(pipe):
    x = torch.zeros(2, 1, 8, 8)
    for wrong in (x.numpy(), x.byte(), x[0], None):
        with pytest.raises(ValueError, match="`x` must be"):
            pipe.score(wrong, 0.5)
    for wrong in (True, torch.tensor(True), "0.5", None, 0.0, 1.1, [0.5, True], [0.5] * 3, [[0.5]] * 2, float("nan")):
        with pytest.raises(ValueError, match=r"`t` must be a time in \(0, 1.0\] or 2 of them"):
            pipe.denoise(x, wrong)
    both = pipe.score(x, 0.5)
    for times in ([0.5, 0.5], np.full(2, 0.5), torch.full((2,), 0.5), np.float32(0.5), torch.tensor([0.5]), 1 / 2):
        assert torch.equal(pipe.score(x, times), both)


def test_black_and_white_is_white_and_not_the_number_1(pipe):
    white = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    codes = [pipe.encode(images, rtol=0.1, atol=0.1, class_labels=0) for images in (white, white > 0)]
    assert torch.equal(*codes)


@pytest.mark.parametrize("generator", [5, "5", (torch.Generator(),), [5, 6]])
def test_what_is_no_generator(pipe, generator):
    for call in (
        lambda: pipe(batch_size=2, generator=generator),
        lambda: pipe.bits_per_dim(torch.zeros(2, 1, 8, 8), generator=generator),
    ):
        with pytest.raises(ValueError, match=r"`generator` must be None, a torch.Generator or a list of 2 of them"):
            call()


@pytest.mark.parametrize("generator", [5, "5", [5]])
def test_what_is_no_generator_elsewhere(pipe, generator):
    scheduler, x = ScoreSdeExponentialScheduler(sde="vp"), torch.zeros(1, 1, 8, 8)
    scheduler.set_timesteps(2)
    for call in (
        lambda: scheduler.sde.prior((1, 8), generator),
        lambda: scheduler.step(x, scheduler.timesteps[0], x, generator=generator),
        lambda: DenoisingScoreMatching(scheduler.parameterization).draw_times(2, generator),
        lambda: fit_sampler(pipe, 2, generator),
    ):
        with pytest.raises(ValueError, match=r"`generator` must be None.* or .*For a seed: torch.Generator"):
            call()


def test_what_is_no_network_and_no_configuration(pipe):
    with pytest.raises(ValueError, match="`unet` must be a model of diffusers, .* but is Linear"):
        ScoreSdePipeline(unet=torch.nn.Linear(2, 2), scheduler=pipe.scheduler)
    for config in ("vp", [1]):
        with pytest.raises(ValueError, match="`config` must be a dict"):
            ScoreSdeExponentialScheduler.from_config(config)
    for kernel in ("1", None, [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="`kernel` must be a finite"):
            Convolution(kernel)


@pytest.mark.parametrize(
    "labels, message",
    [("Bag", "did you mean 'bag'"), (["bag", "boot"], "did you mean 'ankle boot'"), ({"bag"}, "integers, or names")],
)
def test_what_is_no_class(pipe, labels, message):
    with pytest.raises(ValueError, match=message):
        pipe(batch_size=2, class_labels=labels)


def test_keys_that_a_scheduler_does_not_take(pipe):
    config = dict(pipe.scheduler.config)
    with pytest.raises(ValueError, match="can't take the key 'solver_ordr': did you mean 'solver_order'.*eta"):
        ScoreSdeExponentialScheduler.from_config(config, solver_ordr=1)
    with pytest.raises(ValueError, match="ScoreSdeExponentialScheduler can't take the key 'snr'"):
        ScoreSdeExponentialScheduler.from_config(config, snr=0.1)
    with pytest.raises(ValueError, match="can't take the key 'sigma_mx'"):
        ScoreSdeExponentialScheduler.from_config({**config, "sigma_mx": 3.0})
    scheduler, unused = ScoreSdeExponentialScheduler.from_config(config, return_unused_kwargs=True, other=1)
    assert unused["other"] == 1
    # a key of another sampler stays, for when that takes this one's place
    other = ScoreSdePredictorCorrectorScheduler.from_config({**config, "snr": 0.3})
    back = ScoreSdePredictorCorrectorScheduler.from_config(
        ScoreSdeExponentialScheduler.from_config(other.config).config
    )
    assert back.config.snr == 0.3


def test_keys_that_a_network_does_not_take(pipe, tmp_path):
    config = dict(pipe.unet.config)
    with pytest.raises(ValueError, match="NCSNppUNet2DModel can't take the key 'droput': did you mean 'dropout'"):
        NCSNppUNet2DModel.from_config(config, droput=0.1)
    with pytest.raises(ValueError, match="can't take the key 'sigma_mx'"):
        NCSNppUNet2DModel.from_config({**config, "sigma_mx": 3.0})
    assert NCSNppUNet2DModel.from_config(config, dropout=0.1).config.dropout == 0.1
    pipe.unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="can't take the key 'droput'"):
        NCSNppUNet2DModel.from_pretrained(tmp_path, droput=0.1)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "of_a_newer_version": 1}))
    assert NCSNppUNet2DModel.from_pretrained(tmp_path, torch_dtype=torch.float64).dtype == torch.float64


def functions_of_the_public(thing):
    """A function, or the public functions and methods of a module or class of the package."""
    if inspect.isfunction(thing):
        yield inspect.unwrap(thing)
        return
    own = vars(thing).items()
    if isinstance(thing, ModuleType):
        here = [name for name, value in own if getattr(value, "__module__", None) == thing.__name__]
        members = [getattr(thing, name) for name in getattr(thing, "__all__", here) if not name.startswith("_")]
    else:
        members = [value for name, value in own if not name.startswith("_") or name in ("__init__", "__call__")]
        members += thing.__bases__
    for member in members:
        member = getattr(member, "__func__", member)
        of_the_package = str(getattr(member, "__module__", None)).startswith("sde_diffusers")
        if of_the_package and (inspect.isfunction(member) or inspect.isclass(member)):
            yield from functions_of_the_public(member)


def test_every_public_argument_has_a_type():
    """mypy checks that the types hold."""
    public = [getattr(sde_diffusers, name) for name in sde_diffusers.__all__] + [operators, posteriors]
    functions = {function for thing in public for function in functions_of_the_public(thing)}
    assert len(functions) > 100
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            typed = parameter.annotation is not parameter.empty or parameter.kind in VARIADIC
            assert typed or name in ("self", "cls"), f"{function.__module__}.{function.__qualname__}: {name}"
