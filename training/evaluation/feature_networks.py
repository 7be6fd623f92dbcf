"""Networks whose features evaluation compares images by.

    network = load_feature_network("fashion-mnist")   # or "cifar10", "dinov2", "inception", "inception-tf"
    features = network(images)                         # uint8 (N, C, H, W) -> float32 (N, network.dimension)

A Frechet distance means something only together with its feature space. So each network has a name with a digest of
its weights in it, and `distances.FeatureStatistics` keeps that name with the numbers.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from evaluation.residual_classifier import classifier_pixels, load_classifier
from sde_diffusers.weights_digest import weights_digest

PRETRAINED = Path(__file__).resolve().parents[2] / "pretrained"
SHIPPED = {name: PRETRAINED / f"{name}-features" for name in ("fashion-mnist", "cifar10")}
RESOLUTIONS = {"fashion-mnist": 28, "cifar10": 32}  # of the shipped ones, which their names need not tell
PREPROCESSING = ("do_rescale", "rescale_factor", "resample", "do_normalize", "image_mean", "image_std")
DINOV2 = "facebook/dinov2-large"  # the size whose distances are published
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
TF_INCEPTION_SHA256 = "6726825d"  # its beginning, which the file's name has
HUB_TIMEOUT = 5.0  # seconds until the Hub counts as unreachable


class FeatureNetwork:
    """Maps uint8 images to feature vectors; an image's features do not depend on its batch (up to rounding).

    Attributes:
        name: the feature space and its version, e.g. "fashion-mnist-features-1a2b3c4d"; the digits are a digest of the
            weights, so that statistics are never compared with features of other weights.
        dimension: number of features.
        resolution: side in pixels that images are resized to.
    """

    def __init__(
        self,
        name: str,
        dimension: int,
        resolution: int,
        extract: Callable[[torch.Tensor], torch.Tensor],
        device: str | torch.device,
        batch_size: int,
    ):
        """`extract` maps uint8 images (n, C, H, W) on `device`, n <= batch_size, to features (n, dimension)."""
        self.name, self.dimension, self.resolution = name, dimension, resolution
        self._extract, self._device, self._batch_size = extract, device, batch_size

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images, computed in batches that bound the memory.

        Args:
            images: uint8, shape (N, C, H, W), C = 1 or 3, N >= 1, on any device.

        Returns:
            float32 tensor of shape (N, dimension) on the CPU.

        Raises:
            ValueError: `images` has another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
            raise ValueError(
                f"images must be uint8 (N, C, H, W) with C = 1 or 3 and N >= 1, "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        batches = images.split(self._batch_size)
        return torch.cat([self._extract(batch.to(self._device)).float().cpu() for batch in batches])


def load_feature_network(
    name: str, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureNetwork:
    """Loads a feature network.

    Args:
        name: "fashion-mnist" or "cifar10" (the classifiers in `pretrained/NAME-features`; 28 x 28 gray, 32 x 32 RGB),
            "dinov2" (class token of a DINOv2; Stein et al. 2023, arXiv:2306.04675), "inception" (Inception-v3 with
            clean-fid's resizing, the FID's feature space; Parmar et al. 2022, arXiv:2104.11222), or "inception-tf"
            (Inception-v3 with TensorFlow's resizing, as the first FIDs were computed, by torch-fidelity).
        weights: of a classifier: the folder of another one (None: the shipped one). "dinov2": a local folder or an id
            of the Hub (None: "facebook/dinov2-large"). "inception": the file `inception-2015-12-05.pt` or the folder
            that holds it (None: the download that clean-fid names, kept in the cache of torch.hub). "inception-tf":
            torch-fidelity's file (None: likewise).
        device: where the network computes.

    Raises:
        ValueError: `name` is not one of these, or `weights` hold something else.
        FileNotFoundError: `weights` are not there.
        ModuleNotFoundError: transformers, clean-fid or torch-fidelity is not installed.
        ConnectionError: the weights are not on this machine and cannot be downloaded.
    """
    if name not in _LOADERS:
        raise ValueError(f"name must be one of {', '.join(map(repr, _LOADERS))}, got {name!r}")
    return _LOADERS[name](weights, device)


def shipped_statistics_path(network: FeatureNetwork) -> Path | None:
    """The `FeatureStatistics` file of all images that a shipped classifier was trained on; None for other networks."""
    for name, folder in SHIPPED.items():
        path = folder / "statistics.safetensors"
        if path.is_file() and network.name == _classifier(name, None, "cpu").name:
            return path
    return None


def _optional(module: str, requirement: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install {requirement}") from error


# ---- the shipped classifiers ---------------------------------------------------------------------------------------


def _classifier(name: str, weights: str | Path | None, device: str | torch.device) -> FeatureNetwork:
    network, resolution = load_classifier(SHIPPED[name] if weights is None else weights)
    network = network.to(device).requires_grad_(False)
    other = "" if resolution == RESOLUTIONS[name] else f"resolution {resolution}"
    return FeatureNetwork(
        f"{name}-features-{weights_digest(network, other)[:8]}",
        network.head.in_features,
        resolution,
        lambda images: network.features(classifier_pixels(images, network.channels, resolution)),
        device,
        batch_size=256,
    )


# ---- DINOv2 --------------------------------------------------------------------------------------------------------


def _dinov2(weights: str | Path | None, device: str | torch.device) -> FeatureNetwork:
    transformers = _optional("transformers", "transformers")
    folder = _hub_folder(str(weights or DINOV2))
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if not config.model_type.startswith("dinov2"):
            raise ValueError(f"its model type is {config.model_type!r}")
        model, loading = transformers.AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        # The whole image is judged: resized to the size that the processor would crop to.
        size = {side: processor.crop_size[side] for side in ("height", "width")}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"weights {weights or DINOV2} hold no DINOv2 with its image processor: {error}") from error
    if loading["missing_keys"]:  # which transformers would draw at random
        raise ValueError(f"weights {weights or DINOV2} lack the parameters {sorted(loading['missing_keys'])}")
    model = model.to(device).eval().requires_grad_(False)

    def extract(images: torch.Tensor) -> torch.Tensor:
        rgb = list(images.expand(-1, 3, -1, -1))
        inputs = processor(
            images=rgb, size=size, do_center_crop=False, input_data_format="channels_first", return_tensors="pt"
        )
        return model(inputs["pixel_values"].to(device)).last_hidden_state[:, 0]

    how = json.dumps([size, *(str(getattr(processor, key, None)) for key in PREPROCESSING)])
    name = f"{config.model_type}-{config.hidden_size}-{weights_digest(model, how)[:8]}"
    return FeatureNetwork(name, config.hidden_size, size["height"], extract, device, batch_size=32)


def _hub_folder(weights: str) -> Path:
    """A local folder as it is, or the copy of a repository of the Hub."""
    if Path(weights).is_dir():
        return Path(weights)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
        raise FileNotFoundError(f"weights {weights!r} is neither a folder nor an id org/name of the Hub")
    try:
        return Path(snapshot_download(weights, allow_patterns=["*.json", "*.safetensors"], etag_timeout=HUB_TIMEOUT))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(f"weights {weights!r} is no folder, and no open repository of the Hub") from error
    except Exception as error:  # the HTTP library's own errors, which differ between releases
        raise ConnectionError(
            f"weights {weights!r}: no such folder, no copy in the local cache, and the Hub cannot be reached "
            f"({type(error).__name__}: {error}). Give a local folder with the weights, or connect and try again."
        ) from error


# ---- Inception-v3, as clean-fid uses it ----------------------------------------------------------------------------


def _inception(weights: str | Path | None, device: str | torch.device) -> FeatureNetwork:
    inception = _optional("cleanfid.inception_torchscript", "'clean-fid>=0.1.35' 'scipy<1.18'")
    if weights is None:
        url = importlib.import_module("cleanfid.downloads_helper").inception_url
        path = _downloaded(url, INCEPTION_SHA256, INCEPTION_FILE)
    else:
        path = Path(weights)
    path = path / INCEPTION_FILE if path.is_dir() else path
    if not path.is_file() or path.name != INCEPTION_FILE:
        raise FileNotFoundError(
            f"weights must be the file {INCEPTION_FILE} or the folder that holds it: got {weights}"
        )
    try:
        model = inception.InceptionV3W(str(path.parent), download=False).to(device).requires_grad_(False)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} is no torchscript module with `layers`: {error}") from error
    resize = importlib.import_module("cleanfid.resize").build_resizer("clean")

    def extract(images: torch.Tensor) -> torch.Tensor:
        rgb = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        resized = torch.stack([torch.from_numpy(resize(image)) for image in rgb])
        return model(resized.permute(0, 3, 1, 2).contiguous().to(device))

    return FeatureNetwork(f"inception-v3-clean-{weights_digest(model)[:8]}", 2048, 299, extract, device, batch_size=32)


def _downloaded(url: str, sha256: str, name: str | None = None) -> Path:
    """A file in the cache of torch.hub, downloaded if need be; `sha256` is its digest, or the beginning of that."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / (name or url.rpartition("/")[2])
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:  # clean-fid's own download is unchecked, and may leave half a file
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"the Inception weights are not in {path.parent} and cannot be downloaded from {url} ({error}). "
                "Give the path of the file as weights, or connect and try again."
            ) from error
    return path


# ---- Inception-v3, as torch-fidelity uses it ------------------------------------------------------------------------


def _inception_tf(weights: str | Path | None, device: str | torch.device) -> FeatureNetwork:
    fidelity = _optional("torch_fidelity.feature_extractor_inceptionv3", "'torch-fidelity>=0.4'")
    path = _downloaded(fidelity.URL_INCEPTION_V3, TF_INCEPTION_SHA256) if weights is None else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"weights must be the file {Path(fidelity.URL_INCEPTION_V3).name}: got {weights}")
    try:
        torch.load(path, weights_only=True)  # tensors and nothing else: torch-fidelity itself would run what it holds
        model = fidelity.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except (RuntimeError, UnpicklingError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} holds no weights of torch-fidelity's Inception-v3: {error}") from error
    model = model.to(device)

    def extract(images: torch.Tensor) -> torch.Tensor:
        return model(images.expand(-1, 3, -1, -1))[0]

    return FeatureNetwork(f"inception-v3-tf-{weights_digest(model)[:8]}", 2048, 299, extract, device, batch_size=32)


_LOADERS = {name: partial(_classifier, name) for name in SHIPPED}
_LOADERS |= {"dinov2": _dinov2, "inception": _inception, "inception-tf": _inception_tf}
