"""Sampling by the rules of a saved scheduler_config.json, with additions and multiplications alone around it.

Bit for bit the same on any machine, unlike convolutions and drawn noise: the network is a rational function of its
inputs, and the noise a fixed sequence of fractions.
"""

import json

import torch

import sde_diffusers

STEPS = 40
SHAPE = (2, 1, 4, 4)


def fractions(k):
    """Noise number k: symmetric about 0, of deviation 1."""
    i = torch.arange(32, dtype=torch.int64)
    return (((i * 7919 + k * 104729 + i * i * 31) % 2001 - 1000).float() / 577).view(SHAPE)


def answer(scheduler, x, network_time):
    """Of no trained network, but such that every sampler stays finite."""
    mixed = x + 0.2 * x.flip(-1) + 0.1
    level = network_time / 999 if network_time > 60 else network_time
    return {
        "score": -mixed / (0.5 + level * level),
        "epsilon": 0.7 * mixed / (1 + 0.1 * level),
        "sample": 0.5 * mixed / (1 + level * level),
        "v_prediction": 0.3 * mixed / (1 + level),
    }[scheduler.parameterization.prediction_type]


def drawn(folder):
    """(2, 2, 1, 4, 4) float32, what the scheduler saved in `folder` has half-way, and what it draws."""
    name = json.loads((folder / "scheduler_config.json").read_text())["_class_name"]
    scheduler = getattr(sde_diffusers, name).from_pretrained(folder)
    scheduler.set_timesteps(STEPS)
    x, states = fractions(0) * scheduler.init_noise_sigma, []
    for k, t in enumerate(scheduler.timesteps):
        output = answer(scheduler, scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, variance_noise=fractions(k + 1)).prev_sample
        states.append(x)
    return torch.stack([states[len(states) // 2], x])
