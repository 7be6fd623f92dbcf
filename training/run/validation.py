"""The images that are set aside for validation, with the times and the noise of every validation."""

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from run.config import RunConfig
from run.draws import Examples, draw_examples
from run.splits import Images

VALIDATION = 1  # stream of random numbers beside that of the steps


class Validation:
    """Means over the validation images, of which each process has a part.

    Attributes:
        num_images: of all processes together.

    Args:
        images: of which the first `config.data.validation_images` are taken.
        objective: see `TrainingRun`.
        checked_labels: gives the labels as the objective takes them, of those of the images and their name.
        noise_by_image: see `draw_examples`.
    """

    def __init__(
        self,
        images: Images,
        objective,
        config: RunConfig,
        accelerator: Accelerator,
        checked_labels: Callable[[Tensor | None, str], Tensor | None],
        noise_by_image: bool,
    ):
        self._accelerator = accelerator
        rank, world_size = accelerator.process_index, accelerator.num_processes
        count = min(config.data.validation_images, images.num_images or math.inf)
        pixels, labels = next(images.batches(count, seed=0))
        self.num_images = len(pixels)
        examples = draw_examples(
            pixels,
            checked_labels(labels, images.name),
            objective,
            (config.seed, 0, VALIDATION),
            dequantize=config.data.uniform_dequantization,
            pixels=images.pixels,
            noise_by_image=noise_by_image,
        )
        self._own = examples[rank::world_size]
        self._batch_size = max(1, config.batch_size // world_size // config.gradient_accumulation_steps)

    @torch.no_grad()
    def mean(self, measure: Callable[[Examples], Tensor], numbers: int = 1) -> list[float]:
        """Means over all images, to be asked for by all processes.

        Args:
            measure: gives (n, numbers) of n images.
        """
        device = self._accelerator.device
        total = torch.zeros(numbers + 1, device=device)  # the last entry counts images
        for start in range(0, len(self._own.x_0), self._batch_size):
            x_0, noise, times, labels = self._own[start : start + self._batch_size]
            labels = None if labels is None else labels.to(device)
            with self._accelerator.autocast():
                values = measure(Examples(x_0.to(device), noise.to(device), times, labels))
            total[:-1] += values.sum(0)
            total[-1] += len(values)
        *sums, count = self._accelerator.reduce(total).tolist()
        return [value / count for value in sums]
