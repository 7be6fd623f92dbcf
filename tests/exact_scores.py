"""Distributions whose scores are known exactly at every noise level, and what a sampler does to them.

"Images" here are points: vectors of dimension d, shaped (N, d, 1, 1).
"""

import torch


def as_images(points):
    return points[:, :, None, None]


class Gaussian:
    """Data N(mean, covariance)."""

    def __init__(self, mean, covariance):
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.covariance = torch.as_tensor(covariance, dtype=torch.float64)

    def moments(self, sde, t):
        """Mean and covariance of p_t."""
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return alpha * self.mean, alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean)).double()

    def score(self, sde, x, t):
        mean, covariance = self.moments(sde, t)
        return as_images(-torch.linalg.solve(covariance, (x[:, :, 0, 0].double() - mean).T).T)

    def denoised(self, sde, x, t):
        """E[x_0 | x_t = x], also where alpha = 0."""
        mean, covariance = self.moments(sde, t)
        gain = sde.alpha(t) * torch.linalg.solve(covariance, self.covariance)
        return as_images(self.mean + (x[:, :, 0, 0].double() - mean) @ gain)


class Mixture:
    """Data from isotropic modes N(mean_i, std^2 I) with the given weights."""

    def __init__(self, weights, means, std):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.std = std

    def responsibilities(self, points, alpha=1.0, variance=None):
        variance = self.std**2 if variance is None else variance
        distance = torch.cdist(points.double(), alpha * self.means) ** 2
        return torch.softmax(self.weights.log() - distance / (2 * variance), dim=1)

    def score(self, sde, x, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        points, variance = x[:, :, 0, 0].double(), alpha**2 * self.std**2 + sigma**2
        nearest = self.responsibilities(points, alpha, variance) @ (alpha * self.means)
        return as_images((nearest - points) / variance)

    def denoised(self, sde, x, t):
        """E[x_0 | x_t = x], also where alpha = 0."""
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        points, variance = x[:, :, 0, 0].double(), alpha**2 * self.std**2 + sigma**2
        nearest = self.responsibilities(points, alpha, variance) @ self.means
        return as_images(nearest + alpha * self.std**2 / variance * (points - alpha * nearest))


def exact_output(scheduler, data, x):
    """What a perfect network would answer at the scheduler's coming evaluation."""
    p, sde = scheduler.parameterization, scheduler.training_sde
    t = scheduler.training_time(scheduler.times[scheduler.step_index])
    alpha, sigma = sde.alpha(t), sde.sigma(t)

    def noise():
        return -sigma * data.score(sde, x.double(), t)

    def x_0():
        return data.denoised(sde, x.double(), t)

    output = {
        "score": lambda: data.score(sde, x.double(), t),
        "epsilon": noise,
        "sample": x_0,
        "v_prediction": lambda: alpha * noise() - sigma * x_0(),
        "velocity": lambda: p.velocity(x_0(), noise(), t),
    }
    return output[p.prediction_type]().to(x.dtype)


def sample(scheduler, data, x, steps, generator=None):
    """Run the sampler from the state x with the exact network."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = exact_output(scheduler, data, scheduler.scale_model_input(x, t))
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    return x


def sampled_moments(scheduler, data, steps, start=None):
    """Exact mean and covariance of what the sampler draws when the data are Gaussian, without random numbers.

    With a linear score every step is affine in the state and the noise, x' = A x + c + b z. Unit vectors fed through
    `step` give A, c and b of the way from one grid point to the next, and these move mean and covariance along.
    """
    d, stages = len(data.mean), 4  # more network evaluations than any sampler makes between two grid points
    scheduler.set_timesteps(steps)
    mean, covariance = data.moments(scheduler.sde, scheduler.times[0]) if start is None else start
    origin, axes = torch.zeros(1, d).double(), torch.eye(d).double()
    while scheduler.step_index < len(scheduler.times):
        states = torch.cat([origin, axes, origin.expand(stages * d, d)])
        for stage in range(stages):
            z = torch.zeros_like(states)  # the noise of this call moves the rows that stand for it
            z[1 + d + stage * d :][:d] = axes
            x, t = as_images(states), scheduler.timesteps[scheduler.step_index]
            output = exact_output(scheduler, data, scheduler.scale_model_input(x, t))
            states = scheduler.step(output, t, x, variance_noise=as_images(z)).prev_sample[:, :, 0, 0]
            if scheduler.at_grid_point:
                break
        response = (states - states[0]).T
        a, b = response[:, 1 : d + 1], response[:, d + 1 :]
        mean, covariance = a @ mean + states[0], a @ covariance @ a.T + b @ b.T
    return mean, covariance
