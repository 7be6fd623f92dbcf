"""Networks converted from the paper's own code return what its code returned."""

import json
import math
import pathlib

import pytest
import torch
from safetensors import safe_open

from sde_diffusers.convert import unet_config_from_score_sde, unet_from_score_sde

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden"
FILES = sorted(GOLDEN.glob("model_*.safetensors"))
needs_golden = pytest.mark.skipif(not FILES, reason=f"no reference numbers in {GOLDEN}")


def read(file):
    """State dict, configuration and recorded input, conditioning and output of a reference network."""
    with safe_open(file, "pt") as f:
        state = {key.removeprefix("state/"): f.get_tensor(key) for key in f.keys() if key.startswith("state/")}
        return state, json.loads(f.metadata()["config"]), *(f.get_tensor(key) for key in ("x", "labels", "y"))


def reference_config(**changes):
    config = {
        "data": {"image_size": 16, "num_channels": 3, "centered": False},
        "model": {
            "name": "ncsnpp",
            "nf": 8,
            "ch_mult": [1, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [8],
            "dropout": 0.1,
            "resamp_with_conv": True,
            "scale_by_sigma": True,
            "conditional": True,
            "nonlinearity": "swish",
            "embedding_type": "fourier",
            "fourier_scale": 16,
            "fir": True,
            "fir_kernel": [1, 3, 3, 1],
            "resblock_type": "biggan",
            "skip_rescale": True,
            "progressive": "none",
            "progressive_input": "residual",
            "progressive_combine": "sum",
            "init_scale": 0.0,
            "sigma_min": 0.01,
            "sigma_max": 50,
            "num_scales": 1000,
        },
    }
    for key, value in changes.items():
        config["data" if key in config["data"] else "model"][key] = value
    return config


@needs_golden
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_outputs_equal_the_recorded_ones(file, prefix):
    state, config, x, labels, y = read(file)
    unet = unet_from_score_sde({prefix + key: value for key, value in state.items()}, config)
    assert not unet.training
    with torch.no_grad():
        error = (unet(x, labels).sample - y).abs().max() / y.abs().max()
    assert error < 2e-5


@needs_golden
def test_every_misfit_is_listed():
    state, config, *_ = read(GOLDEN / "model_ncsnpp_ve.safetensors")
    del state["all_modules.1.bias"], state["all_modules.10.NIN_1.W"]
    state["all_modules.2.weight"] = torch.zeros(3, 3)
    state["all_modules.99.weight"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        unet_from_score_sde(state, config)
    for line in (
        "all_modules.1.bias: missing",
        "all_modules.10.NIN_1.W: missing",
        "all_modules.2.weight: shape (3, 3)",
        "all_modules.99.weight: unexpected",
    ):
        assert line in str(error.value)


def test_a_state_dict_of_something_else():
    with pytest.raises(ValueError, match="all_modules.0.W: missing[^$]*conv.weight: unexpected"):
        unet_from_score_sde({"conv.weight": torch.zeros(1)}, reference_config())


def test_configurations():
    config = unet_config_from_score_sde(reference_config())
    assert config["block_out_channels"] == (8, 16) and config["image_range"] == (0.0, 1.0)
    assert "sigma_min" not in config
    discrete = unet_config_from_score_sde(reference_config(embedding_type="positional"))
    assert (discrete["sigma_min"], discrete["sigma_max"], discrete["num_scales"]) == (0.01, 50, 1000)
    ddpm = unet_config_from_score_sde(reference_config(name="ddpm", scale_by_sigma=False, centered=True))
    assert ddpm["norm_num_groups"] == 32 and ddpm["resblock_type"] == "ddpm" and not ddpm["fir"]
    assert ddpm["image_range"] == (-1.0, 1.0)


def test_the_table_of_sigmas_is_compared():
    config = reference_config(embedding_type="positional", num_scales=10)
    with pytest.raises(ValueError, match="sigmas: is not"):
        unet_from_score_sde({"sigmas": torch.linspace(50, 0.01, 10)}, config)
    with pytest.raises(ValueError) as error:
        unet_from_score_sde({"sigmas": torch.logspace(math.log10(50), -2, 10)}, config)
    assert "missing" in str(error.value) and "sigmas" not in str(error.value)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"nonlinearity": "elu"}, "model.nonlinearity"),
        ({"conditional": False}, "model.conditional"),
        ({"name": "ncsnv2_64"}, "model.name"),
        ({"embedding_type": "learned"}, "model.embedding_type"),
        ({"resblock_type": "resnet"}, "resblock_type"),
    ],
)
def test_choices_that_cannot_be_converted(changes, name):
    with pytest.raises(ValueError, match=name):
        unet_from_score_sde({}, reference_config(**changes))


def test_missing_keys_of_the_configuration():
    config = reference_config()
    del config["model"]["nf"]
    with pytest.raises(ValueError, match="model.nf"):
        unet_config_from_score_sde(config)
    with pytest.raises(ValueError, match="'data'"):
        unet_config_from_score_sde({"model": config["model"]})
