"""Networks of EDM, converted: they must denoise as EDM's own code did (`tests/data`)."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sde_diffusers import ScoreSdePipeline
from sde_diffusers.convert import edm_denoiser, from_edm

DATA = Path(__file__).parent / "data"
NAMES = ("edm_ddpmpp", "edm_ncsnpp", "edm_skip", "ve_ncsnpp", "vp_ddpmpp")


def load(name):
    """State dict, configuration and recorded tensors."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    return state, config, {key: value for key, value in tensors.items() if not key.startswith("state/")}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def convert(name, **changes):
    state, config, recorded = load(name)
    return from_edm(state, {**config, **changes}), recorded


def test_denoisers_answer_as_edms(name):
    pipe, recorded = convert(name)
    assert not pipe.unet.training
    for image in range(3):  # each on its own scale
        x, sigma, y = (recorded[key][image : image + 1] for key in ("x", "labels", "y"))
        labels = recorded["class_labels"][image : image + 1] if "class_labels" in recorded else None
        error = (edm_denoiser(pipe, x, sigma, labels) - y).abs().max() / y.abs().max()
        assert error < 1e-5


def test_recorded_answers_are_compared(name):
    state, config, recorded = load(name)
    from_edm(state, config, DATA / f"{name}.safetensors")
    with pytest.raises(ValueError, match="does not answer as recorded"):
        from_edm(state, config, {**recorded, "y": 1.01 * recorded["y"]})
    with pytest.raises(ValueError, match="x, labels and y, but labels is missing"):
        from_edm(state, config, {"x": recorded["x"], "y": recorded["y"]})


def test_classes_change_the_answer():
    """Were labels lost, the answers could not agree with the recorded ones and differ from those without."""
    pipe, recorded = convert("edm_ddpmpp")
    without = edm_denoiser(pipe, recorded["x"], recorded["labels"])
    given = edm_denoiser(pipe, recorded["x"], recorded["labels"], recorded["class_labels"])
    assert (without - given).abs().max() > 1e-2
    assert pipe.unet.config.label_dropout == 0  # EDM's default: what it answers without a class was not learnt


@pytest.mark.parametrize("name", ["edm_ddpmpp", "edm_ncsnpp", "edm_skip"])
def test_the_sampler_is_edms(name):
    """Algorithm 1 of arXiv 2206.00364 with the denoiser as a black box, against the pipeline's own loop."""
    pipe, _ = convert(name)
    latents = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    n, low, high = 4, 0.002 ** (1 / 7), 80 ** (1 / 7)
    levels = [(high + i / (n - 1) * (low - high)) ** 7 for i in range(n)] + [0.0]
    x = 80 * latents
    for now, following in zip(levels[:-1], levels[1:], strict=True):
        slope = (x - edm_denoiser(pipe, x, torch.tensor([now]))) / now
        end = x + (following - now) * slope
        if following > 0:
            slope = (slope + (end - edm_denoiser(pipe, end, torch.tensor([following]))) / following) / 2
        x = x + (following - now) * slope
    pipe.set_progress_bar_config(disable=True)
    out = pipe(1, num_inference_steps=n, latents=latents, output_type="latent")
    assert out.nfe == 2 * n - 1
    torch.testing.assert_close(out.images, x, rtol=0, atol=1e-2)


def test_converted_pipelines_survive_saving(name, tmp_path):
    pipe, recorded = convert(name)
    pipe.save_pretrained(tmp_path)
    again = ScoreSdePipeline.from_pretrained(tmp_path)
    for key, value in pipe.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[key], value), key
    answers = [edm_denoiser(p, recorded["x"], recorded["labels"]) for p in (pipe, again)]
    assert torch.equal(*answers)


def test_files(tmp_path):
    """State dict and configuration from files; EDM's pickles, which hold code, are refused unread."""
    state, config, recorded = load("edm_ncsnpp")
    (tmp_path / "edm.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "edm.safetensors")
    torch.save(state, tmp_path / "edm.pt")
    for file in ("edm.safetensors", "edm.pt"):
        from_edm(tmp_path / file, tmp_path / "edm.json", recorded)

    touched = tmp_path / "touched"
    (tmp_path / "network.pkl").write_bytes(pickle.dumps({"ema": Touch(touched)}))
    with pytest.raises(ValueError, match="save_file"):
        from_edm(tmp_path / "network.pkl", config)
    assert not touched.exists()


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_every_misfit_is_listed():
    state, config, _ = load("edm_ddpmpp")
    del state["model.enc.8x8_block0.affine.bias"]
    state["model.dec.4x4_in0.qkv.weight"] = torch.zeros(7, 3)
    state["model.dec.9x9_block0.conv0.weight"] = torch.zeros(1)
    state["model.map_label.bias"] = torch.zeros(5)
    state["model.enc.4x4_down.conv0.resample_filter"] = torch.ones(1, 1, 4, 4) / 16
    with pytest.raises(ValueError) as error:
        from_edm(state, config)
    for line in (
        "enc.8x8_block0.affine.bias: missing",
        "dec.4x4_in0.qkv.weight: shape (7, 3)",
        "dec.9x9_block0.conv0.weight: unexpected",
        "map_label: shapes (8, 3) and (5,)",
        "enc.4x4_down.conv0.resample_filter: is not the filter [1, 1]",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_name": "training.networks.iDDPMPrecond"}, "class_name .*iDDPMPrecond"),
        ({"model_type": "DhariwalUNet"}, "model_type .*DhariwalUNet"),
        ({"embedding_type": "fourier"}, "channel_mult_noise"),
        ({"class_name": "VPPrecond", "embedding_type": "fourier", "channel_mult_noise": 2}, "embedding_type"),
        ({"class_name": "VPPrecond", "M": 4000}, "M must"),
        ({"class_name": "VEPrecond"}, "embedding_type"),
        ({"channel_mult_emb": 2}, "channel_mult_emb"),
        ({"decoder_type": "residual"}, "decoder_type"),
        ({"width": 3}, "no arguments width"),
        ({"class_name": None}, "class_name must be one of .*'None'"),
        ({"channel_mult": 1}, "channel_mult must be a list of numbers, but is 1"),
        ({"img_resolution": "8"}, "img_resolution must be an integer of at least 1, but is '8'"),
        ({"label_dim": None}, "label_dim must be an integer of at least 0, but is None"),
    ],
)
def test_what_cannot_be_expressed_is_named(changes, named):
    config = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet"}
    with pytest.raises(ValueError, match=named):
        from_edm({}, {**config, **changes})


def test_what_is_no_state_dict_is_refused():
    state, config, _ = load("edm_ncsnpp")
    with pytest.raises(ValueError, match="tensors alone, but ema"):
        from_edm({"ema": state}, config)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="lacks img_resolution, img_channels"):
        from_edm({}, {"model_type": "SongUNet"})
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        from_edm({}, "nowhere.json")
    with pytest.raises(ValueError, match="`config` must be a dictionary or a JSON file of one, but is None"):
        from_edm({}, None)
