"""What the benchmarks count and compute; what they measure is in the docs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import corrector_step_size  # noqa: E402
import exact_posteriors  # noqa: E402
import few_step_contenders  # noqa: E402
import restoration  # noqa: E402
import restoration_cost  # noqa: E402
import training_cost  # noqa: E402
import training_throughput  # noqa: E402

from sde_diffusers import NCSNppUNet2DModel  # noqa: E402
from sde_diffusers.models.presets import NCSNPP_PRESETS  # noqa: E402
from sde_diffusers.operators import Bicubic  # noqa: E402


def test_training_cost_of_a_small_network(tmp_path, monkeypatch):
    monkeypatch.setattr(training_cost, "ROUND_SECONDS", 0.0)
    smaller = NCSNPP_PRESETS["small-28"] | {"block_out_channels": (8, 8)}  # the one that a processor may be asked for
    monkeypatch.setitem(NCSNPP_PRESETS, "small-28", smaller)
    training_cost.main([str(tmp_path), "--only", "small-28", "--device", "cpu", "--batch_sizes", "2", "1"])
    results = json.loads((tmp_path / "training_cost.json").read_text())
    entry = results["configurations"]["small-28"]
    assert [(row["batch_size"], row["compiled"], row.get("error")) for row in entry["rows"]] == [
        (1, False, None),
        (2, False, None),
    ]
    assert all(len(row["rounds"]) == results["rounds"] for row in entry["rows"])
    assert entry["rows"][1]["flops_per_second"] == pytest.approx(
        2 * entry["flops_step"] / entry["rows"][1]["seconds_per_step"]
    )
    assert results["matmul_flops_per_second"] is None and entry["schedule_cost"] == []  # no GPU, no hours of GPUs
    assert "| `small-28` | 2 | no |" in (tmp_path / "training_cost.md").read_text()


def test_counts_are_those_of_the_layers_and_of_real_tensors():
    counts = training_cost.count("small-28")
    network = NCSNppUNet2DModel.from_preset("small-28").train()
    layers = []

    def count_layer(layer, inputs, output):
        """2 x inputs x kernel area x outputs, for each output pixel."""
        pixels = output.shape[2:].numel() if output.ndim == 4 else 1
        layers.append(2 * layer.weight.numel() * pixels)

    def count_attention(layer, inputs, output):
        channels, pixels = inputs[0].shape[1], inputs[0].shape[2:].numel()
        layers.append(2 * 2 * channels * pixels**2)

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count_layer)
        elif type(module).__name__ == "SelfAttention":
            module.register_forward_hook(count_attention)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 28, 28), torch.ones(1)).sample.sum().backward()
    assert counts["flops_forward"] == sum(layers)
    assert counts["flops_step"] == counter.get_total_flops()
    assert counts["parameters"] == sum(p.numel() for p in network.parameters())


def test_hours_of_a_schedule():
    """64 images a step on 1, 8 and 32 GPUs: shares of 64, 8 and 2, where batches of 8 and 2 were measured."""

    def row(batch_size, seconds, compiled=False):
        rate = batch_size / seconds
        fields = {"seconds_per_step": seconds, "images_per_second": rate, "peak_bytes": (20 + batch_size) * 10**9}
        return {"batch_size": batch_size, "compiled": compiled, **fields}

    out_of_memory = {"batch_size": 64, "compiled": False, "error": "out of memory"}
    rows = [row(2, 0.5), row(8, 1.0), row(8, 0.8, compiled=True), out_of_memory]
    entry = {"parameters": 10**9, "rows": rows}
    entry["activation_bytes_per_image"] = training_cost.activation_bytes(entry)
    assert entry["activation_bytes_per_image"] == 10**9
    one, eight, many = training_cost.schedule_cost("ncsnpp-256-continuous", entry, gb_per_s=100)
    steps = 2_400_000 / 3600
    assert (
        one["hours"] == pytest.approx(steps * 8 * 0.8)
        and one["micro_batch"] == 8
        and one["memory_bytes"] == 84 * 10**9
    )
    # 4 GB of gradients at 100 GB/s, 2 * 7/8 times: 0.07 s.
    assert eight["hours"] == pytest.approx(steps * (0.8 + 0.07)) and eight["compiled"]
    assert eight["all_reduce_seconds"] == {"float32": pytest.approx(0.07), "bfloat16": pytest.approx(0.035)}
    assert many["hours"] == pytest.approx(steps * (0.5 + 2 * 31 / 32 * 0.04)) and not many["compiled"]
    assert many["memory_bytes"] == (24 + 2) * 10**9
    assert many["hours_at_highest_rate"] == pytest.approx(steps * 64 / (32 * 10))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--batch_sizes", "4", "0"], "--batch_sizes must be above 0"),
        (["--link_gb_per_s", "-1"], "--link_gb_per_s must be above 0"),
        (["--only", "cifar10"], "invalid choice: 'cifar10'"),
        (["--device", "cpu", "--only", "ncsnpp-256-continuous"], "--device cpu is for --only small-28"),
    ],
)
def test_training_cost_refuses(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        training_cost.main([str(tmp_path / "new"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_training_throughput_refuses_the_papers_code_on_gpus(tmp_path, capsys, monkeypatch):
    arguments = ["training_throughput.py", str(tmp_path / "new"), "--device", "cuda", "--score_sde", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        training_throughput.main()
    assert "--score_sde is for --device cpu" in capsys.readouterr().err


def test_contenders_have_names_of_their_own():
    """Results are kept by name."""
    names = {
        training_throughput.Contender(
            network, bfloat16, keeps_memory=False, channels_last=last, compiled=compiled
        ).name
        for network in (training_throughput.OURS, training_throughput.DIFFUSERS)
        for bfloat16 in (False, True)
        for last in (False, True)
        for compiled in (False, True)
    }
    assert len(names) == 16


def test_the_page_says_what_was_measured():
    """docs/scale.md holds the tables of docs/training_cost.json, as the present code computes them."""
    results = json.loads((ROOT / "docs" / "training_cost.json").read_text())
    training_cost.compute(results)
    page = (ROOT / "docs" / "scale.md").read_text().splitlines()
    lines = [line for line in training_cost.markdown(results).splitlines() if line.startswith("|")]
    assert len(lines) > 20 and [line for line in lines if line not in page] == []


@pytest.mark.parametrize("noise", ["0", "scalar", "per value"])
def test_errors_of_exact_draws_are_one(noise):
    """Means and covariances of samples are measured in what exact draws show; a wrong posterior shows."""
    problem, k = exact_posteriors.Problem(Bicubic(4), noise), 2000
    values, vectors = torch.linalg.eigh(problem.covariance)
    z = torch.randn(k, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = problem.mean + z * values.clamp(min=0).sqrt() @ vectors.T
    errors = problem.errors(draws)
    assert errors["mean"] == pytest.approx(1, abs=0.2) and errors["covariance"] == pytest.approx(1, abs=0.1)
    assert problem.errors(draws + 0.02)["mean"] > 2 and problem.errors(1.2 * draws)["covariance"] > 2
    x = torch.randn(2, *problem.shape[1:], generator=torch.Generator().manual_seed(1))
    expected = problem.network(x, torch.tensor(0.5)).sample
    torch.testing.assert_close(problem.denoise(x, 0.5), expected, rtol=0, atol=1e-5)


def test_moments_without_draws_are_those_of_the_posterior(monkeypatch):
    monkeypatch.setattr(restoration, "AFFINE_STEPS", 60)
    scheduler, network, operator, y = restoration.gaussian_problem("box", 0.1)
    mean, covariance = network.posterior(operator, y, 0.1)
    method, affine = restoration.GAUSSIAN_METHODS["MMPS, converged"]
    means, found = restoration.affine_moments(scheduler, network, operator, y, 0.1, method)
    assert affine and (means - mean).abs().max() < 1e-3 * covariance.diagonal().sqrt().max()
    assert (found - covariance).norm() < 0.15 * covariance.norm()  # steps of first order


def test_every_contender_of_few_steps_can_be_made():
    names = {entry.sampler for entry in few_step_contenders.our_entries()}
    assert {"Exponential data 3", "Heun", "reverse_diffusion + langevin"} <= names


def test_the_correctors_of_text_and_code_are_two(capsys, monkeypatch):
    for name, value in {"PIXELS": 500, "STEPS": (20,), "DEVIATIONS": (0.5,)}.items():
        monkeypatch.setattr(corrector_step_size, name, value)
    corrector_step_size.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "alpha" not in line and "_" in line]
    ratios = {cells[2].strip(): float(cells[3]) for cells in rows if "diffusion" in cells[1]}
    assert ratios.keys() == {"none", "1 - beta_i (code)", "cumulative (text)"} and len(set(ratios.values())) == 3


@pytest.mark.parametrize(("task", "missing"), [("a hole of 14 x 14", 14**2), ("75 % missing", 0.75 * 28**2)])
def test_tasks_are_what_they_are_called(task, missing):
    assert (restoration_cost.operator_of(task).mask.sum().item()) == pytest.approx(missing, rel=0.05)
