"""What an `NCSNppUNet2DModel` can be built of."""

import math
from types import NoneType

from sde_diffusers.scalars import real_number, whole_number


def check_ncsnpp_config(config):
    """Raise a ValueError that names the first argument with a value that is not allowed."""

    def check(condition, name, allowed):
        if not condition:
            raise ValueError(f"`{name}` must be {allowed}, got {config[name]!r}.")

    def is_count(value):
        return whole_number(value) >= 1

    for name, choices in {
        "time_embedding_type": ("fourier", "positional"),
        "class_joins": ("embedding", "features"),
        "resblock_type": ("biggan", "ddpm"),
        "progressive": ("none", "output_skip", "residual"),
        "progressive_input": ("none", "input_skip", "residual"),
        "progressive_combine": ("sum", "cat"),
        "preconditioning": (None, "edm"),
    }.items():
        check(config[name] in choices, name, f"one of {choices}")
    for name in ("fir", "resample_with_conv", "skip_rescale", "scale_by_sigma", "consistency"):
        check(isinstance(config[name], bool), name, "True or False")
    for name in ("in_channels", "layers_per_block", "patch_size"):
        check(is_count(config[name]), name, "a positive integer")
    for name in ("out_channels", "base_channels", "num_class_embeds", "augment_dim", "norm_num_groups"):
        check(config[name] is None or is_count(config[name]), name, "None or a positive integer")
    sides = config.sample_size if isinstance(config.sample_size, (list, tuple)) else [config.sample_size]
    given = len(sides) == (2 if isinstance(config.sample_size, (list, tuple)) else 1)
    check(given and all(map(is_count, sides)), "sample_size", "a positive integer or two")
    for name in ("block_out_channels", "attention_resolutions", "fir_kernel", "image_range"):
        check(isinstance(config[name], (list, tuple)), name, "a list or tuple")
    check(all(map(is_count, config.attention_resolutions)), "attention_resolutions", "positive integers")
    check(all(math.isfinite(real_number(tap)) for tap in config.fir_kernel), "fir_kernel", "finite numbers")
    numbers = all(real_number(end) == end for end in config.image_range)
    check(len(config.image_range) == 2 and numbers, "image_range", "two numbers (low, high)")
    check(isinstance(config.class_names, (list, tuple, NoneType)), "class_names", "None or a list")
    widths = config.block_out_channels
    check(len(widths) and all(map(is_count, widths)), "block_out_channels", "positive integers, one per level")
    groups = config.norm_num_groups or 1
    check(all(n % groups == 0 for n in widths), "block_out_channels", f"multiples of norm_num_groups={groups}")
    base = "block_out_channels" if config.base_channels is None else "base_channels"
    width = config.base_channels or widths[0]
    check(width >= 2, base, "at least 2 for the first convolution (width of the time features)")
    check(width % groups == 0, base, f"a multiple of norm_num_groups={groups}")
    check(len(config.fir_kernel) >= 2 and sum(config.fir_kernel), "fir_kernel", "two or more taps, sum not 0")
    check(0 <= real_number(config.dropout) < 1, "dropout", "in [0, 1)")
    check(
        config.label_dropout is None or 0 <= real_number(config.label_dropout) < 1,
        "label_dropout",
        "None or in [0, 1)",
    )
    low, high = config.image_range
    check(low < high, "image_range", "(low, high) with low < high")
    check(-math.inf < low and high < math.inf, "image_range", "finite")
    check(0 <= real_number(config.init_scale) < math.inf, "init_scale", "a finite number of at least 0")
    for name in ("sigma_data", "fourier_scale"):
        check(0 < real_number(config[name]) < math.inf, name, "positive")
    check(config.preconditioning or config.pixel_levels is None, "pixel_levels", "None without preconditioning")
    check(
        config.progressive != "output_skip" or config.pixel_levels is None,
        "pixel_levels",
        "None with progressive='output_skip'",
    )
    if config.preconditioning is not None:
        alike = config.out_channels in (None, config.in_channels)
        check(alike, "out_channels", "None or in_channels with preconditioning")
        check(not config.scale_by_sigma, "scale_by_sigma", "False with preconditioning")
        check((low, high) == (-1, 1), "image_range", "(-1, 1) with preconditioning")
    elif config.scale_by_sigma and config.time_embedding_type == "positional":
        reason = "with scale_by_sigma and a positional embedding (index into a table of sigmas)"
        check(whole_number(config.num_scales) >= 2, "num_scales", f"an integer of 2 or more {reason}")
        check(0 < real_number(config.sigma_min) < math.inf, "sigma_min", f"positive {reason}")
        above = config.sigma_min < real_number(config.sigma_max) < math.inf
        check(above, "sigma_max", f"a number above sigma_min {reason}")
