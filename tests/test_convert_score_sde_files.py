"""Whole checkpoints of the paper's own code, its configurations by name, and files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sde_diffusers import ScoreSdePredictorCorrectorScheduler
from sde_diffusers.convert import (
    SCORE_SDE_CONFIGS,
    from_score_sde,
    scheduler_config_from_score_sde,
    unet_config_from_score_sde,
    unet_from_score_sde,
)
from sde_diffusers.models.presets import NCSNPP_PRESETS
from sde_diffusers.models.unet_ncsnpp import NCSNppUNet2DModel

CONFIG = {
    "training": {"sde": "vesde", "continuous": True},
    "data": {"centered": False, "image_size": 8, "num_channels": 1},
    "model": {
        **SCORE_SDE_CONFIGS["ve/cifar10_ncsnpp_continuous"]["model"],
        "nf": 4,
        "ch_mult": [1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
    },
}
# The layers of that network in the reference's list, with the shapes of their parameters in its order of them.
BLOCK = {"GroupNorm_0": (4,), "Conv_0": (4, 4, 3, 3), "Dense_0": (4, 16), "GroupNorm_1": (4,), "Conv_1": (4, 4, 3, 3)}
BLOCK_UP = {**BLOCK, "GroupNorm_0": (8,), "Conv_0": (4, 8, 3, 3), "Conv_2": (4, 8, 1, 1)}
ATTENTION = {"GroupNorm_0": (4,), **{f"NIN_{i}": (4, 4) for i in range(4)}}
LAYERS = [{"": (4,)}, {"": (16, 8)}, {"": (16, 16)}, {"": (4, 1, 3, 3)}, BLOCK, BLOCK, ATTENTION, BLOCK]
LAYERS += [BLOCK_UP, BLOCK_UP, {"": (4,)}, {"": (1, 4, 3, 3)}]


def parameters(seed):
    """Random parameters of the reference's network; the first, the Fourier frequencies, is not trained."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for i, layer in enumerate(LAYERS):
        for name, shape in layer.items():
            weight, bias = ("W", "b") if i == 0 or name.startswith("NIN") else ("weight", "bias")
            prefix = f"all_modules.{i}." + (f"{name}." if name else "")
            state[prefix + weight] = torch.randn(shape, generator=generator)
            if i > 0:
                state[prefix + bias] = torch.randn(shape[1:] if weight == "W" else shape[:1], generator=generator)
    return state


def checkpoint():
    """What the reference's training writes: raw weights behind DataParallel, EMA weights as a bare list."""
    averages = list(parameters(seed=1).values())[1:]
    model = {"module.sigmas": torch.zeros(1000), **{f"module.{k}": v for k, v in parameters(seed=0).items()}}
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": averages}
    return {"optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]}, "model": model, "ema": ema, "step": 7}


def expected():
    """The network with the averages of the trained parameters and the frequencies of the model."""
    return unet_from_score_sde(parameters(seed=1) | {"all_modules.0.W": parameters(seed=0)["all_modules.0.W"]}, CONFIG)


def assert_same(unet, other):
    for key, value in other.state_dict().items():
        assert torch.equal(unet.state_dict()[key], value), key


def test_the_ema_weights_are_taken():
    assert_same(from_score_sde(checkpoint(), CONFIG).unet, expected())


def test_files(tmp_path):
    """Checkpoints, bare state dicts and configurations are read from files."""
    torch.save(checkpoint(), tmp_path / "checkpoint_7.pth")
    save_file(parameters(seed=0), tmp_path / "raw.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_same(from_score_sde(tmp_path / "checkpoint_7.pth", tmp_path / "config.json").unet, expected())
    raw = from_score_sde(str(tmp_path / "raw.safetensors"), CONFIG).unet
    assert_same(raw, unet_from_score_sde(parameters(seed=0), CONFIG))


def test_files_that_run_code_are_refused(tmp_path):
    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"model": Touch()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="could run its code"):
        from_score_sde(tmp_path / "bad.pth", CONFIG)
    assert not (tmp_path / "touched").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="no complete safetensors"):
        from_score_sde(tmp_path / "cut.safetensors", CONFIG)
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        from_score_sde(tmp_path / "nowhere.pth", CONFIG)


def test_averages_that_do_not_fit_are_listed():
    wrong = checkpoint()
    wrong["ema"]["shadow_params"][2] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"ema.shadow_params\[2\]: shape \(3,\), but its parameter module.all_modules.2"
    ):
        from_score_sde(wrong, CONFIG)
    wrong["ema"]["shadow_params"].pop()
    with pytest.raises(ValueError, match=r"ema.shadow_params: \d+ tensors for \d+ parameters"):
        from_score_sde(wrong, CONFIG)


def test_recorded_answers_are_compared(tmp_path):
    unet = expected()
    x, labels = torch.rand(2, 1, 8, 8), torch.tensor([0.1, 10.0])
    with torch.no_grad():
        recorded = {"x": x, "labels": labels, "y": unet(x, labels).sample}
    save_file(recorded, tmp_path / "recorded.safetensors")
    from_score_sde(checkpoint(), CONFIG, tmp_path / "recorded.safetensors")
    raw = checkpoint()["model"]  # without the averages
    with pytest.raises(ValueError, match="does not answer as recorded"):
        from_score_sde(raw, CONFIG, recorded)


# The reference's configurations.


def test_configurations_make_networks_and_schedulers():
    networks = []
    for config in SCORE_SDE_CONFIGS.values():
        ScoreSdePredictorCorrectorScheduler(**scheduler_config_from_score_sde(config))
        network = unet_config_from_score_sde(config)
        if network not in networks and network["layers_per_block"] < 8:  # most differ in the SDE alone
            networks.append(network)
            with torch.device("meta"):
                NCSNppUNet2DModel(**network)
    assert len(networks) > 5


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("ve/cifar10_ncsnpp_continuous", "cifar10-ncsnpp-continuous"),
        ("subvp/cifar10_ddpmpp_continuous", "cifar10-ddpmpp-continuous"),
        ("ve/ffhq_256_ncsnpp_continuous", "ncsnpp-256-continuous"),
    ],
)
def test_configurations_are_the_presets(theirs, ours):
    with torch.device("meta"):
        converted = NCSNppUNet2DModel(**unet_config_from_score_sde(SCORE_SDE_CONFIGS[theirs]))
        preset = NCSNppUNet2DModel.from_preset(ours)
    assert {k: v.shape for k, v in converted.state_dict().items()} == {
        k: v.shape for k, v in preset.state_dict().items()
    }
    for key in NCSNPP_PRESETS[ours]:
        assert converted.config[key] == preset.config[key], key


def test_configurations_by_name(monkeypatch):
    monkeypatch.setitem(SCORE_SDE_CONFIGS, "ve/tiny", CONFIG)
    assert_same(from_score_sde(checkpoint(), "ve/tiny").unet, expected())
    with pytest.raises(ValueError, match="one of ve/cifar10_ddpm, .*but is 've/unknown'"):
        from_score_sde({}, "ve/unknown")
