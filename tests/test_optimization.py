"""`pipe.optimize()`: samples are the same up to rounding, everything else is untouched, and loading undoes it."""

import copy

import pytest
import torch

from sde_diffusers import NCSNppUNet2DModel, ScoreSdeExponentialScheduler, ScoreSdePipeline, optimization
from sde_diffusers.optimization import asked_for_samples


def new_pipe(**options):
    torch.manual_seed(0)
    shape = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1}
    unet = NCSNppUNet2DModel(attention_resolutions=(4,), num_class_embeds=2, init_scale=1.0, **shape)
    pipe = ScoreSdePipeline(
        unet=unet.eval(), scheduler=ScoreSdeExponentialScheduler(sde="ve", sigma_max=5.0, **options)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, n=2):
    return pipe(n, 4, class_labels=0, generator=torch.Generator().manual_seed(1), output_type="pt").images


def test_a_copy_in_half_precision_draws_samples_and_does_nothing_else(tmp_path):
    pipe = new_pipe()
    weights = copy.deepcopy(pipe.unet.state_dict())
    before, codes = sample(pipe), pipe.encode(torch.full((1, 1, 8, 8), 0.5), rtol=1e-2, atol=1e-2)
    chosen = pipe.optimize(precision="bfloat16", layout="contiguous")
    assert (chosen.precision, chosen.layout, chosen.compiled) == ("bfloat16", "contiguous", False)
    after = sample(pipe)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, before, atol=0.05, rtol=0)
    assert torch.equal(pipe.encode(torch.full((1, 1, 8, 8), 0.5), rtol=1e-2, atol=1e-2), codes)
    for name, weight in pipe.unet.state_dict().items():
        assert weight.dtype == weights[name].dtype and torch.equal(weight, weights[name])
    assert asked_for_samples(copy.deepcopy(pipe.unet)).dtype == torch.float32
    pipe.save_pretrained(tmp_path)
    loaded = ScoreSdePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(sample(loaded), before)
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.1)
    assert asked_for_samples(pipe.unet) is pipe.unet


@pytest.mark.parametrize(
    "fastest", [("float32", "contiguous"), ("float32", "channels_last"), ("bfloat16", "channels_last")]
)
def test_the_fastest_way_is_chosen_and_said(monkeypatch, fastest):
    monkeypatch.setattr(optimization, "seconds_of", lambda ways, device: {w: 0.5 + (w != fastest) for w in ways})
    pipe = new_pipe()
    before, chosen = sample(pipe), pipe.optimize(batch_size=2)
    assert (chosen.precision, chosen.layout) == fastest and len(chosen.seconds) == 3
    assert str(chosen).startswith(f"Sampling in {', '.join(fastest)} (") and "500 ms" in str(chosen)
    assert pipe.unet.conv_in.weight.dtype == torch.float32
    torch.testing.assert_close(sample(pipe), before, atol=0.05 if fastest[0] == "bfloat16" else 1e-5, rtol=0)


def test_a_hook_of_the_network_acts():
    pipe = new_pipe()
    pipe.optimize(precision="bfloat16", layout="contiguous")
    before = sample(pipe)
    handle = pipe.unet.register_forward_hook(lambda _, __, answer: type(answer)(sample=0 * answer.sample))
    assert not torch.equal(sample(pipe), before)
    handle.remove()
    assert torch.equal(sample(pipe), before)


def test_compiled_for_one_shape_where_it_pays(monkeypatch):
    shapes = []

    def compile_of(module, **options):
        def compiled(x, *arguments, **labels):
            shapes.append(tuple(x.shape))
            return module(x, *arguments, **labels)

        return compiled

    monkeypatch.setattr(optimization, "COMPILING_SECONDS", 0.0)
    monkeypatch.setattr(torch, "compile", compile_of)
    monkeypatch.setattr(
        optimization, "seconds_of", lambda ways, device: {w: 1.0 / (1 + k) for k, w in enumerate(ways)}
    )
    pipe = new_pipe()
    before = sample(pipe)
    assert not pipe.optimize(2, layout="contiguous", precision="float32").compiled
    assert pipe.optimize(2, evaluations=10, layout="contiguous", precision="float32").compiled
    shapes.clear()
    assert torch.equal(sample(pipe), before) and set(shapes) == {(2, 1, 8, 8)}
    shapes.clear()
    sample(pipe, 3)
    assert not shapes

    def failing(module, **options):
        raise RuntimeError("no compiler\nof any kind")

    monkeypatch.setattr(torch, "compile", failing)
    chosen = pipe.optimize(2, evaluations=10)
    assert not chosen.compiled and chosen.notes == ("It can't be compiled here: RuntimeError: no compiler",)


def test_what_is_hopeless_is_tried_once(monkeypatch):
    calls, clock = {"fast": 0, "slow": 0}, [0.0]

    def way(name, seconds):
        def work():
            calls[name] += 1
            clock[0] += seconds + 1 / calls[name]

        return work

    monkeypatch.setattr(optimization.time, "process_time", lambda: clock[0])
    seconds = optimization.seconds_of({"fast": way("fast", 1.0), "slow": way("slow", 9.0)}, torch.device("cpu"))
    assert calls == {"fast": 6, "slow": 2} and seconds == pytest.approx({"fast": 1 + 1 / 6, "slow": 9.5})


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"evaluations": -1}, {"layout": "nhwc"}, {"precision": "float16"}]
)
def test_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must"):
        new_pipe().optimize(**wrong)
