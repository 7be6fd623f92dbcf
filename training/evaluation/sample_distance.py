"""How far the samples of a network in training lie from its training images: `evaluate.py` in small."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from evaluation.distances import FeatureStatistics
from evaluation.feature_metrics import compare_features, compute_features, eight_bits
from evaluation.feature_networks import load_feature_network
from evaluation.samples import class_labels, draw_numbered
from run.config import DistanceConfig
from run.yaml_config import ConfigError
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.pipelines.pipeline_score_sde import StateNotFiniteError

METRICS = ["frechet_distance", "kernel_distance"]
BATCH_SIZE = 100


class SampleDistance:
    """Measures pipelines against the same images, from the same noise; to be used by all processes together.

    Attributes:
        settings: texts that are the same for distances that compare.

    Args:
        config: which feature network, how many images and steps.
        images: uint8 (N, C, H, W), some training images, as `eight_bits` gives them.
        name: of their data set, for the progress bar.
        seed: of the noise.

    Raises:
        ConfigError: there is no such feature network, or it cannot be loaded.
    """

    def __init__(self, config: DistanceConfig, images: Tensor, name: str, seed: int, accelerator: Accelerator):
        self._config, self._seed, self._accelerator = config, seed, accelerator
        try:
            self._network = load_feature_network(config.features, config.weights, accelerator.device)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise ConfigError(f"distance: {error}") from error
        cache = Path(config.cache_dir).expanduser()
        self._reference = compute_features(images, f"images of {name}", self._network, cache, accelerator)
        self._statistics = FeatureStatistics.from_features(self._reference)
        self._said: set[str] = set()
        numbers = config.num_images, config.num_inference_steps, len(self._reference)
        self.settings = [self._network.name, "{} samples in {} steps, {} real images".format(*numbers)]

    def __call__(self, pipeline: ScoreSdePipeline) -> tuple[dict[str, float], list[str]]:
        """Frechet and kernel distance of samples of a pipeline, on all processes.

        With few images the Frechet distance is biased upwards, much the same at every step; the kernel distance isn't.

        Returns:
            Those that could be measured, and why others, or all, could not; what holds of every call is said once.
        """
        config, accelerator = self._config, self._accelerator
        starts = range(0, config.num_images, BATCH_SIZE)[accelerator.process_index :: accelerator.num_processes]
        own: list[tuple[int, Tensor | str]] = []
        try:
            own += [(start, self._features(pipeline, start)) for start in starts]
        except StateNotFiniteError as error:  # of a network that has learnt little; the run goes on
            own += [(config.num_images, f"no distance. {error}")]
        parts = sorted(gather_object(own), key=lambda pair: pair[0])
        if failed := [part for _, part in parts if isinstance(part, str)]:
            return {}, failed[:1]
        features = torch.cat([part for _, part in parts])
        records = [*compare_features(METRICS, features, self._reference, self._statistics, seed=self._seed)]
        reasons = [f"no {r['metric']}: {r['refused']}" for r in records if r["value"] is None]
        new = [reason for reason in reasons if reason not in self._said]
        self._said.update(new)
        return {record["metric"]: record["value"] for record in records if record["value"] is not None}, new

    def _features(self, pipeline: ScoreSdePipeline, start: int) -> Tensor:
        indices = range(start, min(start + BATCH_SIZE, self._config.num_images))
        classes = pipeline.unet.config.num_class_embeds
        labels = class_labels("balanced" if classes else "none", indices, classes, None, self._seed)
        with self._accelerator.autocast():
            images, _ = draw_numbered(
                pipeline, indices, labels, self._seed, num_inference_steps=self._config.num_inference_steps
            )
        return self._network(eight_bits(images, pipeline.pixel_format))
