"""Gaussian images: a network that denoises them exactly, and their posterior under a linear measurement."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn


class GaussianImages(ModelMixin, ConfigMixin):
    """The exact network for images N(mean, covariance) in its own range, for any parameterization.

    The covariance is that of a stationary process, correlated by exp(-distance / length) between pixels and by 0.6
    between channels; the mean is the same everywhere.
    """

    accepts_float32_input = True  # the state as it is: float64 if it is

    @register_to_config
    def __init__(self, sample_size=6, in_channels=3, mean=0.0, std=0.2, length=3.0, num_class_embeds=None):
        super().__init__()
        self.no_weight = nn.Parameter(torch.zeros(1))
        places = torch.cartesian_prod(torch.arange(float(sample_size)), torch.arange(float(sample_size))).double()
        pixels = (-torch.cdist(places, places) / length).exp()
        channels = 0.6 + 0.4 * torch.eye(in_channels, dtype=torch.float64)
        self.covariance = std**2 * torch.kron(channels, pixels)
        self.mean = torch.full((len(self.covariance),), mean, dtype=torch.float64)

    def answers(self, scheduler):
        self.parameterization = scheduler.parameterization
        return self

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        p = self.parameterization
        t = p.sde_time(torch.as_tensor(timestep).cpu())
        alpha, sigma = p.sde.alpha(t), p.sde.sigma(t)
        total = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean), dtype=torch.float64)
        gain = alpha * torch.linalg.solve(total, self.covariance)
        x = sample.flatten(1)
        offset = self.mean - alpha * self.mean @ gain
        x_0 = (x @ gain.to(x.dtype) + offset.to(x.dtype)).view(sample.shape)
        return UNet2DOutput(sample=p.target(x_0, (sample - alpha.to(x.dtype) * x_0) / sigma.to(x.dtype), t))

    def draw(self, n, generator):
        size, channels = self.config.sample_size, self.config.in_channels
        z = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        x = self.mean + z @ torch.linalg.cholesky(self.covariance).T
        return x.view(n, channels, size, size)

    def posterior(self, operator, y, noise_std):
        """Mean (N, d) and covariance (d, d) of the images given y, in float64 and the network's range."""
        d, shape = len(self.mean), (self.config.in_channels, self.config.sample_size, self.config.sample_size)
        a = operator(torch.eye(d, dtype=torch.float64).view(d, *shape)).flatten(1).T
        seen = a.abs().sum(1) > 0  # rows that measure nothing (missing pixels) have no noise either
        a, y = a[seen], y.double().flatten(1)[:, seen]
        total = a @ self.covariance @ a.T + noise_std**2 * torch.eye(len(a), dtype=torch.float64)
        gain = torch.linalg.pinv(total, rtol=1e-10, hermitian=True) @ a @ self.covariance
        return self.mean + (y - a @ self.mean) @ gain, self.covariance - (a @ self.covariance).T @ gain
