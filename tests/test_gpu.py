"""On a GPU, everything answers as it does on the CPU: seeds, samplers, likelihoods, restoration, training."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sde_diffusers import (
    NCSNppUNet2DModel,
    NoiseConditionalClassifier,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdeRestorationPipeline,
)
from sde_diffusers.operators import Downsampling, GaussianBlur, Mask, box_mask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ROOT = Path(__file__).resolve().parents[1]
SAMPLERS = {
    "reverse diffusion, Langevin": (ScoreSdePredictorCorrectorScheduler, {"corrector_steps": 2}),
    "Euler-Maruyama": (ScoreSdePredictorCorrectorScheduler, {"predictor": "euler_maruyama", "corrector": "none"}),
    "ancestral": (ScoreSdePredictorCorrectorScheduler, {"predictor": "ancestral", "corrector": "none"}),
    "Heun, churn": (ScoreSdeProbabilityFlowScheduler, {"s_churn": 5.0}),
    "exponential ODE": (ScoreSdeExponentialScheduler, {"solver_order": 3}),
    "exponential SDE": (ScoreSdeExponentialScheduler, {"solver_order": 2, "eta": 1.0}),
}


@pytest.fixture(autouse=True)
def exact_float32():
    """Without TensorFloat-32, whose three digits would hide errors."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def tiny(scheduler=ScoreSdeExponentialScheduler, pipeline=ScoreSdePipeline, **options):
    torch.manual_seed(0)
    unet = NCSNppUNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_resolutions=(4,),
        num_class_embeds=3,
    )
    with torch.no_grad():
        for parameter in unet.parameters():  # no layer starts at zero
            parameter.add_(0.01 * torch.randn_like(parameter))
    options = {"sde": "ve", "sigma_max": 10.0, **options}
    pipe = pipeline(unet=unet.eval(), scheduler=scheduler(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def on_both(pipe, call):
    """What `call(pipe)` gives on the CPU and on the GPU."""
    here = call(pipe)
    return here, call(pipe.to("cuda"))


def seeds(count):
    return [torch.Generator().manual_seed(k) for k in range(count)]


def close(here, there, tolerance=2e-3):
    there = torch.as_tensor(there).cpu()
    assert there.shape == here.shape and torch.isfinite(there).all()
    assert (here - there).abs().max() <= tolerance * here.abs().max()


@pytest.mark.parametrize("sde", ["ve", "vp", "sub_vp"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples(sampler, sde):
    cls, options = SAMPLERS[sampler]
    if sampler == "ancestral" and sde == "sub_vp":
        pytest.skip("sub-VP has no ancestral sampler")
    pipe = tiny(cls, sde=sde, **options)
    here, there = on_both(
        pipe, lambda p: p(3, 12, class_labels=[0, 1, 2], guidance_scale=1.5, generator=seeds(3), output_type="pt")
    )
    assert here.nfe == there.nfe
    close(here.images, there.images)


def test_a_generator_of_the_gpu_repeats():
    pipe = tiny().to("cuda")
    one, again = (
        pipe(2, 5, generator=torch.Generator("cuda").manual_seed(3), output_type="pt").images for _ in range(2)
    )
    assert torch.equal(one, again)


@pytest.mark.parametrize("sde", ["ve", "vp", "sub_vp"])
def test_likelihoods_and_codes(sde):
    pipe, images = tiny(sde=sde), torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    here, there = on_both(pipe, lambda p: p.bits_per_dim(images, generator=seeds(2), rtol=1e-4, atol=1e-4))
    assert abs(here.nfe - there.nfe) <= 0.1 * here.nfe
    close(here.bits_per_dim, there.bits_per_dim, 2e-3)
    here, there = on_both(tiny(sde=sde), lambda p: p.encode(images.float() / 255, rtol=1e-4, atol=1e-4))
    close(here, there, 1e-2)


def test_classifier_guidance():
    torch.manual_seed(0)
    classifier = NoiseConditionalClassifier(
        sample_size=8, in_channels=1, num_classes=3, block_out_channels=(16, 32)
    ).eval()
    pipe = tiny()
    pipe.register_modules(classifier=classifier)
    close(
        *(
            output.images
            for output in on_both(
                pipe,
                lambda p: p(2, 6, class_labels=[0, 1], classifier_scale=1.0, generator=seeds(2), output_type="pt"),
            )
        )
    )


@pytest.mark.parametrize("operator", [Mask(box_mask(8, 8, (2, 2, 6, 6))), Downsampling(2), GaussianBlur(0.7)])
@pytest.mark.parametrize("method", ["projection", "dps", "pigdm", "mmps"])
def test_restoration(method, operator):
    pipe = tiny(pipeline=ScoreSdeRestorationPipeline)
    measurement = operator(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    here, there = on_both(
        pipe,
        lambda p: p(
            measurement,
            operator,
            noise_std=0.0 if method == "projection" else 0.05,
            method=method,
            num_inference_steps=8,
            generator=seeds(2),
            output_type="pt",
        ),
    )
    close(here.images, there.images, 5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    images = tiny().to("cuda", dtype)(2, 5, generator=seeds(2), output_type="pt").images
    assert torch.isfinite(images).all()


def test_compiled_without_graph_breaks():
    pipe = tiny().to("cuda")
    x, t = torch.randn(2, 1, 8, 8, device="cuda"), torch.tensor([0.5, 2.0], device="cuda")
    labels = torch.tensor([0, -1], device="cuda")
    with torch.no_grad():
        plain = pipe.unet(x, t, class_labels=labels).sample
        compiled = torch.compile(pipe.unet, fullgraph=True)(x, t, class_labels=labels).sample
    close(plain.cpu(), compiled, 1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "no"])
def test_training_and_evaluation(tmp_path, precision):
    run = tmp_path / "run"
    train = [sys.executable, str(ROOT / "training/train.py"), str(ROOT / "training/configs/demo.yaml")]
    small = ["data.max_images=600", "data.validation_images=50", "batch_size=32", f"mixed_precision={precision}"]
    subprocess.run([*train, f"output_dir={run}", "steps=12", "checkpoint_every=6", *small], check=True)
    subprocess.run([*train, f"output_dir={run}", "steps=18", "resume=latest", *small], check=True)
    evaluate = [sys.executable, str(ROOT / "training/evaluate.py"), str(run / "pipeline")]
    options = [
        "data.dataset=fashion_mnist",
        "data.max_images=300",
        "samples.num_images=200",
        "metrics=[kernel_distance]",
    ]
    options += ["feature_spaces=[fashion-mnist]", "likelihood.num_images=4", "likelihood.rtol=1e-3"]
    folders = [f"output_dir={tmp_path / 'evaluation'}", f"cache_dir={tmp_path / 'cache'}", "likelihood.atol=1e-3"]
    subprocess.run([*evaluate, *options, *folders], check=True)
    assert (tmp_path / "evaluation" / "page.png").is_file()
