"""Feature networks: the shipped classifier, DINOv2 and Inception loaded from small stand-ins, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import train_feature_network
from evaluation import feature_networks
from evaluation.distances import FeatureStatistics, frechet_distance
from evaluation.feature_networks import (
    SHIPPED,
    load_feature_network,
    shipped_statistics_path,
)
from evaluation.residual_classifier import classifier_pixels, load_classifier
from images.loading import load_images

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data" / "fashion_mnist"
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"


@pytest.fixture(scope="module")
def shipped():
    return load_feature_network("fashion-mnist")


@pytest.fixture(scope="module")
def garments():
    return load_images(str(ROOT / "data" / "fashion_mnist"), "test")


def noise_images(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def assert_independent_of_batch(network, images):
    """Alone, in another batch, in another order: the same features."""
    features = network(images)
    assert features.shape == (len(images), network.dimension) and features.dtype == torch.float32
    assert features.isfinite().all() and not features.requires_grad
    scale = features.abs().max()
    torch.testing.assert_close(network(images[1:2]) / scale, features[1:2] / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(network(images.flip(0)) / scale, features.flip(0) / scale, rtol=0, atol=1e-5)
    assert (features[0] - features[1]).abs().max() > 1e-3 * scale  # and not those of any image


# ---- the shipped classifier ----------------------------------------------------------------------------------------


def test_the_shipped_classifier_knows_garments(garments):
    classifier, resolution = load_classifier(SHIPPED["fashion-mnist"])
    with torch.inference_mode():
        logits = classifier(classifier_pixels(garments.images, 1, resolution))
    assert (logits.argmax(1) == garments.labels).float().mean() > 0.92
    assert (SHIPPED["fashion-mnist"] / "model.safetensors").stat().st_size <= 2e6


def test_shipped_features(shipped, garments):
    assert shipped.name.startswith("fashion-mnist-features-") and (shipped.dimension, shipped.resolution) == (96, 28)
    assert_independent_of_batch(shipped, garments.images[:5])
    assert shipped(garments.images[:300]).shape == (300, 96)  # more than it computes at a time


@pytest.mark.skipif(not SHIPPED["cifar10"].is_dir(), reason="the CIFAR-10 classifier is not in this checkout")
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not on this machine")
def test_the_shipped_classifier_knows_animals_and_vehicles():
    images = load_images(str(CIFAR10), "test", max_images=1000)
    network = load_feature_network("cifar10")
    features, mirrored = network(images.images), network(images.images.flip(3))
    classifier, resolution = load_classifier(SHIPPED["cifar10"])
    with torch.inference_mode():
        logits, of_mirrored = classifier.head(features), classifier.head(mirrored)
        whole = classifier(classifier_pixels(images.images[:20], 3, resolution))
    torch.testing.assert_close(logits[:20], whole, rtol=1e-4, atol=1e-4)
    assert (logits.argmax(1) == images.labels).float().mean() > 0.865
    assert ((logits + of_mirrored).argmax(1) == images.labels).float().mean() > 0.88
    assert (SHIPPED["cifar10"] / "model.safetensors").stat().st_size <= 5e6
    statistics = FeatureStatistics.load(shipped_statistics_path(network), network.name)
    assert statistics.count == 50_000 and statistics.description["dataset"] == "cifar10"
    few = images.images[:500]
    own = FeatureStatistics.from_features(features[:500])  # of as many images: the distance depends on their number
    noisy = (few + 16 * torch.randn(few.shape)).round().clamp(0, 255).byte()
    far = FeatureStatistics.from_features(network(noisy))
    assert frechet_distance(own, statistics) < frechet_distance(far, statistics) / 3


def test_gray_images_in_colour_and_larger_ones_have_nearly_the_same_features(shipped, garments):
    images = garments.images[:20]
    features = shipped(images)
    torch.testing.assert_close(shipped(images.expand(-1, 3, -1, -1)), features, rtol=1e-3, atol=1e-3)
    doubled = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    near = (shipped(doubled) - features).norm(dim=1)
    far = (features[:, None] - features).norm(dim=2).mean()
    assert near.mean() < 0.35 * far


def test_colours_become_the_gray_that_pillow_makes_of_them():
    from PIL import Image

    rgb = noise_images(1, 3, 8, 8)
    gray = Image.fromarray(rgb[0].permute(1, 2, 0).numpy()).convert("L")
    expected = torch.tensor(list(gray.tobytes())).view(8, 8)
    assert ((classifier_pixels(rgb, 1, 8)[0, 0] * 255) - expected).abs().max() <= 1


def test_shipped_statistics_are_those_of_the_training_images(shipped, garments):
    statistics = FeatureStatistics.load(shipped_statistics_path(shipped), shipped.name)
    assert statistics.count == 60_000 and statistics.dimension == shipped.dimension and statistics.is_reliable
    assert statistics.description["dataset"] == "fashion_mnist" and statistics.description["split"] == "train"
    training = load_images(str(ROOT / "data" / "fashion_mnist"), "train", max_images=1000).images
    near = frechet_distance(FeatureStatistics.from_features(shipped(training)), statistics)
    noisy = (training + 16 * torch.randn(training.shape)).round().clamp(0, 255).byte()
    far = frechet_distance(FeatureStatistics.from_features(shipped(noisy)), statistics)
    assert near < far / 3


@pytest.mark.skipif(not SHARED.is_dir(), reason="the whole of Fashion-MNIST is not on this machine")
def test_shipped_statistics_are_recomputed(shipped):
    """From every 30th training image: their mean lies within its standard error of the shipped one."""
    statistics = FeatureStatistics.load(shipped_statistics_path(shipped), shipped.name)
    features = shipped(load_images(str(SHARED), "train", max_images=2000).images).double()
    deviation = (features.mean(0) - statistics.mean) / (statistics.covariance.diagonal() / 2000).sqrt()
    assert deviation.abs().max() < 4.5
    torch.testing.assert_close(features.var(0), statistics.covariance.diagonal(), rtol=0.35, atol=0)


def test_other_weights_have_another_name_and_no_shipped_statistics(shipped, tmp_path):
    weights = load_file(SHIPPED["fashion-mnist"] / "model.safetensors")
    weights["head.bias"] += 1
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((SHIPPED["fashion-mnist"] / "config.json").read_text())
    other = load_feature_network("fashion-mnist", weights=tmp_path)
    assert other.name != shipped.name and shipped_statistics_path(other) is None


def test_folders_without_a_classifier_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json in"):
        load_feature_network("fashion-mnist", weights=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"widths": [8, 8, 8], "num_classes": 10, "resolution": 28}))
    save_file(load_file(SHIPPED["fashion-mnist"] / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no classifier of train_feature_network.py"):
        load_feature_network("fashion-mnist", weights=tmp_path)


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 28, 28), noise_images(2, 28, 28), noise_images(2, 4, 28, 28)])
def test_what_is_no_batch_of_images_is_refused(shipped, images):
    with pytest.raises(ValueError, match="images must be uint8"):
        shipped(images)


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="'inception', 'inception-tf', got 'vgg'"):
        load_feature_network("vgg")


# ---- its training --------------------------------------------------------------------------------------------------


def test_training_learns_and_leaves_all_that_loading_needs(tmp_path):
    folder = tmp_path / "network"
    arguments = ["--dataset", str(ROOT / "data" / "fashion_mnist"), "--output_dir", str(folder)]
    small = ["--max_images", "640", "--epochs", "2", "--batch_size", "32", "--lr", "0.05"]
    assert train_feature_network.main([*arguments, *small]) == 0
    network = load_feature_network("fashion-mnist", weights=folder)
    statistics = FeatureStatistics.load(folder / "statistics.safetensors", network.name)
    assert statistics.count == 640 and statistics.dimension == network.dimension
    card = (folder / "README.md").read_text()
    accuracy = float(card.split("value: ")[1].split()[0])
    assert 0.3 < accuracy <= 1 and f"{100 * accuracy:.2f} % of the 1,000 test images" in card
    with pytest.raises(SystemExit):
        train_feature_network.main([*arguments, *small])  # not over a folder that exists


def test_a_classifier_of_coloured_images(tmp_path):
    """Of the recipe cifar10, on a few images whose colour is their class."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
    from PIL import Image as Picture

    features = Features({"img": Image(), "label": ClassLabel(names=["red", "blue"])})
    pictures = [Picture.new("RGB", (32, 32), [(200 - k, 0, 0), (0, 0, 200 - k)][k % 2]) for k in range(64)]
    rows = Dataset.from_dict({"img": pictures, "label": [k % 2 for k in range(64)]}, features=features)
    for split, part in DatasetDict(train=rows, test=rows).items():
        (tmp_path / "data").mkdir(exist_ok=True)
        part.to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    arguments = [
        "--features",
        "cifar10",
        "--dataset",
        str(tmp_path / "data"),
        "--output_dir",
        str(tmp_path / "network"),
    ]
    small = ["--epochs", "4", "--batch_size", "16", "--lr", "0.02", "--about_data", "of one colour each"]
    assert train_feature_network.main([*arguments, *small]) == 0
    network = load_feature_network("cifar10", weights=tmp_path / "network")
    assert network.name.startswith("cifar10-features-") and (network.dimension, network.resolution) == (160, 32)
    card = (tmp_path / "network" / "README.md").read_text()
    assert "64 training images of `data`, of one colour each" in card and "it knows red, blue, at 32 x 32" in card
    assert "CIFAR" not in card.replace("--features cifar10", "") and "uoft-cs" not in card  # which these are not
    assert "% by the scores of an image and its mirror image together." in card
    assert float(card.split("value: ")[1].split()[0]) > 0.9  # which a gray network could not
    assert network(noise_images(2, 1, 32, 32)).shape == (2, 160)  # gray ones count as colours

    first = str(tmp_path / "network")
    again = ["--epochs", "1", "--batch_size", "16", "--lr", "1e-20", "--initial_weights", first]
    second = [*arguments[:-1], str(tmp_path / "second")]
    assert train_feature_network.main([*second, *again]) == 0
    weights = [load_file(f"{tmp_path}/{folder}/model.safetensors")["head.weight"] for folder in ("network", "second")]
    assert (
        torch.equal(*weights) and f"from the weights in `{first}`" in (tmp_path / "second" / "README.md").read_text()
    )
    with pytest.raises(SystemExit):
        train_feature_network.main(
            [*second[:-1], str(tmp_path / "third"), "--initial_weights", str(SHIPPED["fashion-mnist"])]
        )


def test_shifts_move_whole_images_over_black():
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    rows, columns = train_feature_network.shifted(images, 2)[:, 0].nonzero()[:, 1:].T
    assert len(rows) == 200 and set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}


# ---- DINOv2 --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_dinov2(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    transformers.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, do_center_crop=True
    ).save_pretrained(folder)
    return folder


def test_dinov2_features(tiny_dinov2):
    network = load_feature_network("dinov2", weights=tiny_dinov2)
    assert network.name.startswith("dinov2-16-") and (network.dimension, network.resolution) == (16, 28)
    assert_independent_of_batch(network, noise_images(3, 3, 40, 40))
    gray = noise_images(40, 1, 28, 28)  # more than it computes at a time
    assert torch.equal(network(gray), network(gray.expand(-1, 3, -1, -1)))


def test_dinov2_sees_the_whole_image_normalised_as_its_processor_says(tiny_dinov2):
    import transformers

    images = noise_images(2, 3, 28, 28)
    processor = transformers.AutoImageProcessor.from_pretrained(tiny_dinov2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    with torch.inference_mode():
        model = transformers.Dinov2Model.from_pretrained(tiny_dinov2).eval()
        expected = model((images / 255 - mean) / std).pooler_output
    torch.testing.assert_close(load_feature_network("dinov2", tiny_dinov2)(images), expected, rtol=0, atol=1e-4)


def test_folders_without_a_dinov2_are_refused(tiny_dinov2, tmp_path):
    with pytest.raises(ValueError, match="hold no DINOv2"):
        load_feature_network("dinov2", weights=tmp_path)
    for file in tiny_dinov2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack the parameters.*layernorm.weight"):  # else drawn at random, unsaid
        load_feature_network("dinov2", weights=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "vit"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model type is 'vit'"):
        load_feature_network("dinov2", weights=tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder nor an id"):
        load_feature_network("dinov2", weights=tmp_path / "nowhere" / "at" / "all")


def test_dinov2_without_a_connection_says_what_to_do(monkeypatch, tmp_path):
    pytest.importorskip("transformers")

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(feature_networks, "snapshot_download", unreachable)
    with pytest.raises(ConnectionError, match="no route to host.*Give a local folder"):
        load_feature_network("dinov2", weights="someone/dinov2")


# ---- Inception -----------------------------------------------------------------------------------------------------


class TinyInception(nn.Module):
    """As much of the torchscript module as clean-fid touches."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 10), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2048)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def tiny_inception(tmp_path_factory):
    pytest.importorskip("cleanfid")
    path = tmp_path_factory.mktemp("inception") / feature_networks.INCEPTION_FILE
    torch.manual_seed(0)
    torch.jit.script(TinyInception()).save(str(path))
    return path


def test_inception_features(tiny_inception):
    network = load_feature_network("inception", weights=tiny_inception)
    assert network.name.startswith("inception-v3-clean-") and (network.dimension, network.resolution) == (2048, 299)
    assert_independent_of_batch(network, noise_images(3, 3, 32, 32))
    gray = noise_images(2, 1, 28, 28)
    in_folder = load_feature_network("inception", weights=tiny_inception.parent)
    assert in_folder.name == network.name and torch.equal(network(gray), in_folder(gray.expand(-1, 3, -1, -1)))


def test_inception_features_are_those_that_clean_fid_computes_of_a_folder(tiny_inception, tmp_path):
    fid = pytest.importorskip("cleanfid.fid")
    from cleanfid.inception_torchscript import InceptionV3W
    from PIL import Image

    images = noise_images(3, 3, 32, 32)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    model = InceptionV3W(str(tiny_inception.parent), download=False).eval()
    theirs = fid.get_folder_features(
        str(tmp_path), model, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
    )
    ours = load_feature_network("inception", weights=tiny_inception)(images)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-4, atol=1e-5)


def test_inception_weights_that_are_not_there(tmp_path, monkeypatch):
    pytest.importorskip("cleanfid")
    with pytest.raises(FileNotFoundError, match="the folder that holds it"):
        load_feature_network("inception", weights=tmp_path)
    (tmp_path / feature_networks.INCEPTION_FILE).write_bytes(b"not a module")
    with pytest.raises(ValueError, match="no torchscript module"):
        load_feature_network("inception", weights=tmp_path)

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(ConnectionError, match="no route to host.*Give the path"):
        load_feature_network("inception")


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """Weights for torch-fidelity's network, none of them trained."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from unittest import mock

    path = tmp_path_factory.mktemp("inception-tf") / "weights.pth"
    torch.manual_seed(0)
    with mock.patch.object(fidelity.FeatureExtractorInceptionV3, "load_state_dict"):
        with mock.patch.object(fidelity, "load_state_dict_from_url"):
            torch.save(fidelity.FeatureExtractorInceptionV3("any", ["2048"]).state_dict(), path)
    return path


def test_inception_features_are_those_that_torch_fidelity_computes(random_inception):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = load_feature_network("inception-tf", weights=random_inception)
    assert network.name.startswith("inception-v3-tf-") and (network.dimension, network.resolution) == (2048, 299)
    images = noise_images(2, 1, 28, 28)
    theirs = FeatureExtractorInceptionV3("any", ["2048"], feature_extractor_weights_path=str(random_inception))
    (expected,) = theirs(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0


def test_torch_fidelitys_weights_that_are_no_tensors_are_refused(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(FileNotFoundError, match="weights must be the file weights-inception"):
        load_feature_network("inception-tf", weights=tmp_path)
    torch.save({"weights": pytest.raises}, tmp_path / "code.pth")  # a pickle that names a function
    with pytest.raises(ValueError, match="holds no weights of torch-fidelity's Inception-v3"):
        load_feature_network("inception-tf", weights=tmp_path / "code.pth")


MODULES = {
    "dinov2": "transformers",
    "inception": "cleanfid.inception_torchscript",
    "inception-tf": "torch_fidelity.feature_extractor_inceptionv3",
}


@pytest.mark.parametrize("name, module", MODULES.items())
def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        load_feature_network(name)
