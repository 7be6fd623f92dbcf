"""The noise-conditional classifier as a network: shapes, scales, dtypes, gradients, saving."""

import pytest
import torch
from torch import nn

from sde_diffusers import NoiseConditionalClassifier


def small(**options):
    torch.manual_seed(0)
    classifier = NoiseConditionalClassifier(
        **{
            "sample_size": 8,
            "in_channels": 2,
            "num_classes": 5,
            "block_out_channels": (8, 12),
            "layers_per_block": 1,
            **options,
        }
    )
    nn.init.normal_(classifier.head.weight)
    return classifier.eval()


def images(n=3, size=(8, 8)):
    return torch.rand(n, 2, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_one_logit_for_each_class(patch_size, size):
    logits = small(patch_size=patch_size)(images(size=size), torch.tensor([0.01, 1.0, 30.0]))
    assert logits.shape == (3, 5) and logits.dtype == torch.float32 and logits.isfinite().all()


def test_each_image_has_its_own_noise_level():
    classifier, x = small(), images()
    levels = torch.tensor([0.01, 0.5, 20.0])
    together = classifier(x, levels)
    for i, level in enumerate(levels.tolist()):
        torch.testing.assert_close(together[i : i + 1], classifier(x[i : i + 1], level), rtol=0, atol=1e-5)
    assert (classifier(x, 0.01) - classifier(x, 1.0)).abs().max() > 1e-3


def test_inputs_have_unit_variance_at_every_level():
    classifier, seen = small(sigma_data=0.3), []
    classifier.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    generator = torch.Generator().manual_seed(0)
    for level in (1e-3, 0.3, 40.0):
        x = 0.5 + (0.3**2 + level**2) ** 0.5 * torch.randn(8, 2, 32, 32, generator=generator)
        classifier(x, level)
        assert seen[-1].std().item() == pytest.approx(1, abs=0.02)


def test_gradients_reach_the_image_in_every_precision():
    expected = None
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = images().double().requires_grad_() if dtype == torch.float64 else images().requires_grad_()
        (gradient,) = torch.autograd.grad(small().to(dtype)(x, 0.2).log_softmax(1)[:, 0].sum(), x)
        expected = gradient if expected is None else expected
        tolerance = {torch.float64: 0, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype] * expected.abs().max().item()
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=tolerance)


def test_saves_and_loads(tmp_path):
    classifier = small()
    classifier.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    again = NoiseConditionalClassifier.from_pretrained(tmp_path)
    assert again.config.num_classes == 5 and again.dtype == torch.float32 and not again.training
    torch.testing.assert_close(again(images(), 0.3), classifier(images(), 0.3), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"in_channels": 0}, "in_channels"),
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": None}, "num_classes"),
        ({"block_out_channels": ()}, "block_out_channels"),
        ({"block_out_channels": (8, 0)}, "block_out_channels"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"patch_size": 1.5}, "patch_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"sigma_data": 0.0}, "sigma_data"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        NoiseConditionalClassifier(**options)


def test_bad_inputs_are_named():
    classifier = small()
    with pytest.raises(ValueError, match="`sample`"):
        classifier(torch.zeros(1, 3, 8, 8), 1.0)
    with pytest.raises(ValueError, match="`noise_level`"):
        classifier(images(), torch.ones(2))
