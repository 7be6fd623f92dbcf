"""What a network is told beside the image: noise level, class and augmentation, as one embedding."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusers.models.layers import compute_dtype
from sde_diffusers.scalars import can_be_seen


def require_noise(name: str, levels: Tensor) -> None:
    """Raise a `ValueError` on noise levels of which there is no logarithm; those on a GPU are taken as they are."""
    if can_be_seen(levels) and not (levels > 0).all():
        raise ValueError(f"`{name}` must be above 0, being a noise level, but is {levels.tolist()}.")


class ConditioningMixin:
    """The embedding of a network with `time_proj`, `time_embedding`, `class_embedding` and `augment_embedding`."""

    config: Any
    time_proj: Any
    time_embedding: Any
    class_embedding: Any
    augment_embedding: Any
    conv_in: Any

    def _embed(self, condition, class_labels, augment_labels):
        """Embedding (N, 4 width) of noise level (N,), class (None, () or (N,)) and augmentation (None or (N, dim))."""
        features = self.time_proj(condition).to(compute_dtype(self.conv_in))
        augment_emb = self._embed_augmentation(augment_labels, features)
        if augment_emb is not None:
            features = features + augment_emb
        class_emb = self._embed_class(class_labels, features)
        if class_emb is None:
            return F.silu(self.time_embedding(features))
        if self.config.class_joins == "features":
            return F.silu(self.time_embedding(features + class_emb))
        return F.silu(self.time_embedding(features) + class_emb)

    def _embed_class(self, class_labels, features):
        """Embeddings of the classes, 0 for -1, for the images of these features; None if there are none."""
        if class_labels is None:
            return None
        labels, batch_size = torch.as_tensor(class_labels), len(features)
        if labels.is_floating_point() or labels.dtype == torch.bool or tuple(labels.shape) not in ((), (batch_size,)):
            found = f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ValueError(f"`class_labels` must be integers of shape () or ({batch_size},), got {found}.")
        labels = labels.long()  # torch does not compare unsigned ones with -1
        classes = self.config.num_class_embeds or 0
        if can_be_seen(labels) and ((labels < -1) | (labels >= classes)).any():
            raise ValueError(f"`class_labels` must be -1 or in [0, {classes}), got {labels.tolist()}.")
        if self.class_embedding is None:
            return None
        labels = labels.to(features.device).expand(batch_size)
        class_emb = self.class_embedding(labels.clamp(min=0))
        return torch.where(labels[:, None] >= 0, class_emb, torch.zeros_like(class_emb))

    def _embed_augmentation(self, augment_labels, features):
        """What the labels (N, augment_dim) add to the features (N, ...) of the noise level; None if none are known."""
        dim = self.config.augment_dim
        if augment_labels is None and not dim:
            return None
        shape = (len(features), dim)
        if augment_labels is None:  # the layer takes part all the same, as several processes need of every parameter
            augment_labels = features.new_zeros(shape)
        if self.augment_embedding is None or tuple(augment_labels.shape) != shape:
            raise ValueError(f"`augment_labels` must have shape {shape}, got {tuple(augment_labels.shape)}.")
        return self.augment_embedding(augment_labels.to(features))
