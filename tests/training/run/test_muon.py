"""Muon, beside torch's own and the singular value decomposition."""

# ruff: noqa: F401, F811 (fixtures)

import json

import pytest
import torch
from tiny_training import assert_same_bits, final_state, metrics, one_thread, run_here, tiny
from torch import nn

import train
from run.muon import Muon, hidden_matrices, orthogonalized
from sde_diffusers import NCSNppUNet2DModel
from sde_diffusers.models.presets import NCSNPP_PRESETS


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 24)
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.blocks.append(nn.Linear(24, 40))
        self.last = nn.Linear(40, 3)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.last(x)


@pytest.mark.parametrize("shape", [(3, 20, 20), (20, 70), (70, 20)])
def test_singular_values_become_about_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalized(matrices)
    # The same singular vectors; values within the range that the iteration is made for.
    values = u.mT @ result @ vh.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(values, torch.diag_embed(diagonal), atol=1e-10, rtol=0)
    large = torch.linalg.svdvals(matrices) > 0.1 * torch.linalg.matrix_norm(matrices)[..., None] / 20**0.5
    assert (diagonal[large] > 0.6).all() and (diagonal < 1.25).all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_torch(weight_decay):
    """Of matrices torch.optim.Muon's, which computes in bfloat16; of all else exactly torch.optim.AdamW's."""
    torch.manual_seed(0)
    ours, theirs = Blocks(), Blocks()
    theirs.load_state_dict(ours.state_dict())
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    options = {"lr": 0.01, "weight_decay": weight_decay}
    optimizer = Muon(ours, betas=(0.9, 0.99), eps=1e-8, **options)
    matrices = hidden_matrices(theirs)
    others = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    references = [
        torch.optim.Muon(matrices, momentum=0.95, adjust_lr_fn="match_rms_adamw", **options),
        torch.optim.AdamW(others, betas=(0.9, 0.99), eps=1e-8, **options),
    ]
    assert [name for name, p in theirs.named_parameters() if any(p is m for m in matrices)] == [
        f"blocks.{k}.weight" for k in range(3)
    ]
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        # The same gradients for both: a difference of theirs would hide one of the steps.
        gradients = [torch.randn(p.shape, generator=generator) for p in ours.parameters()]
        for network in (ours, theirs):
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
        optimizer.step()
        for reference in references:
            reference.step()
    for name, value in ours.state_dict().items():
        other = theirs.state_dict()[name]
        if name.startswith("blocks") and name.endswith("weight"):
            moved = (other - start[name]).norm()
            assert moved > 0.1 and (value - other).norm() < 0.01 * moved
        else:
            torch.testing.assert_close(value, other, atol=0, rtol=0)


def test_a_step_has_the_size_of_the_rate():
    """0.2 of the rate for each weight, on average, as AdamW's steps have."""
    torch.manual_seed(0)
    network = Blocks()
    optimizer = Muon(network, lr=0.01, weight_decay=0.0)
    before = [p.detach().clone() for p in hidden_matrices(network)]
    network(torch.randn(64, 5)).square().mean().backward()
    for p in hidden_matrices(network):  # of full rank
        p.grad = torch.randn_like(p)
    optimizer.step()
    for old, new in zip(before, hidden_matrices(network), strict=True):
        assert (new - old).square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.25)


@pytest.mark.parametrize("preset", NCSNPP_PRESETS)
def test_no_kernel_of_images_is_a_hidden_one(preset):
    """Neither the first and the last layer nor those of pyramids; the preset of 256 pixels has no last layer else."""
    with torch.device("meta"):
        network = NCSNppUNet2DModel.from_preset(preset)
    names = {id(p): name for name, p in network.named_parameters()}
    chosen = {names[id(p)] for p in hidden_matrices(network)}
    kernels = {name for name, p in network.named_parameters() if p.ndim == 4 and min(p.shape[:2]) <= 4}
    patched = network.config.patch_size > 1  # whose images have more channels
    assert (kernels or patched) and not kernels & chosen and len(chosen) > 20


def test_kernels_of_a_network():
    network = NCSNppUNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1
    )
    names = {id(p): name for name, p in network.named_parameters()}
    chosen = {names[id(p)] for p in hidden_matrices(network)}
    assert {"down_blocks.0.0.conv1.weight", "mid_blocks.0.emb.weight"} <= chosen
    assert not any(name.startswith(("conv_in", "conv_out", "time_embedding")) or "norm" in name for name in chosen)


def test_a_kernel_in_another_layout_takes_the_same_step():
    torch.manual_seed(0)
    networks = [nn.ModuleList([nn.Conv2d(4, 6, 3)]) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    networks[1].to(memory_format=torch.channels_last)
    gradient = torch.randn(6, 4, 3, 3)
    for network in networks:
        kernel = network[0].weight
        kernel.grad = torch.empty_like(kernel).copy_(gradient)
        Muon(network, lr=0.1, weight_decay=0.0).step()
    assert networks[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(networks[0][0].weight, networks[1][0].weight, atol=0, rtol=0)


def test_a_resumed_run_follows_an_uninterrupted_one(tiny, tmp_path, capsys):
    overrides = [
        "optimizer.name=muon",
        "checkpoint_every=6",
        "checkpoints_limit=null",
        "gradient_accumulation_steps=2",
    ]
    whole = run_here(tiny, tmp_path / "whole", *overrides)
    checkpoint = f"resume={whole}/checkpoints/step-00000006"
    resumed = run_here(tiny, tmp_path / "resumed", *overrides, checkpoint)
    assert_same_bits(final_state(resumed), final_state(whole))
    moments = {key.rpartition("/")[2] for file, key in final_state(whole) if file == "optimizer.safetensors"}
    assert moments == {"momentum", "exp_avg", "exp_avg_sq", "step"}
    assert train.main([str(tiny), f"output_dir={tmp_path}/other", checkpoint]) == 1
    assert "optimizer.name was 'muon' when the checkpoint was written and is 'adamw' now" in capsys.readouterr().err


def test_a_run_of_an_earlier_release_had_adamw(tiny, tmp_path, capsys):
    folder = run_here(tiny, tmp_path / "run", "steps=1")
    state = folder / "checkpoints" / "step-00000001" / "state.json"
    content = json.loads(state.read_text())
    assert content["config"].pop("optimizer.name") == "adamw"
    state.write_text(json.dumps(content))
    arguments = [str(tiny), f"output_dir={folder}", "steps=2", "resume=latest"]
    assert train.main([*arguments, "optimizer.name=muon"]) == 1
    assert "optimizer.name was 'adamw'" in capsys.readouterr().err
    assert train.main(arguments) == 0
    assert list(metrics(folder)) == [1, 2]
