"""Known configurations of `NCSNppUNet2DModel`: those of the paper, and small ones for a CPU."""

# Sources: configs/{ve,vp}/*.py of the paper's own code (github.com/yang-song/score_sde_pytorch). Its sigma_max and the
# like belong to the SDE (scheduler), not to the network.
_CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 4,
    "attention_resolutions": (16,),
    "dropout": 0.1,
}
_CIFAR10_NCSNPP = {**_CIFAR10, "progressive_input": "residual"}
_CIFAR10_DDPMPP = {
    **_CIFAR10,
    "time_embedding_type": "positional",
    "fir": False,
    "scale_by_sigma": False,
    "image_range": (-1.0, 1.0),
}
# Training on two CPU cores: no FIR filters, EDM preconditioning, and a gentle Fourier embedding of ln(sigma)/4, which
# spans about one unit. These are ours, not a paper's.
_SMALL = {
    "layers_per_block": 2,
    "fourier_scale": 1.0,
    "fir": False,
    "scale_by_sigma": False,
    "image_range": (-1.0, 1.0),
    "preconditioning": "edm",
}
NCSNPP_PRESETS = {
    # configs/ve/cifar10_ncsnpp_continuous.py
    "cifar10-ncsnpp-continuous": _CIFAR10_NCSNPP,
    # configs/ve/cifar10_ncsnpp_deep_continuous.py
    "cifar10-ncsnpp-deep-continuous": {**_CIFAR10_NCSNPP, "layers_per_block": 8},
    # configs/{vp,subvp}/cifar10_ddpmpp_continuous.py
    "cifar10-ddpmpp-continuous": _CIFAR10_DDPMPP,
    # configs/{vp,subvp}/cifar10_ddpmpp_deep_continuous.py
    "cifar10-ddpmpp-deep-continuous": {**_CIFAR10_DDPMPP, "layers_per_block": 8},
    # configs/ve/{celebahq,ffhq}_256_ncsnpp_continuous.py, bedroom and church alike
    "ncsnpp-256-continuous": {
        "sample_size": 256,
        "block_out_channels": (128, 128, 256, 256, 256, 256, 256),
        "layers_per_block": 2,
        "attention_resolutions": (16,),
        "progressive": "output_skip",
        "progressive_input": "input_skip",
    },
    "small-28": {
        **_SMALL,
        "sample_size": 28,
        "in_channels": 1,
        "block_out_channels": (48, 96),
        "attention_resolutions": (7,),
        "patch_size": 2,
        "sigma_data": 0.7,
    },
    "small-32": {**_SMALL, "sample_size": 32, "block_out_channels": (48, 96, 96), "attention_resolutions": (8,)},
    "small-64": {
        **_SMALL,
        "sample_size": 64,
        "block_out_channels": (48, 96, 96),
        "attention_resolutions": (8,),
        "patch_size": 2,
    },
}
