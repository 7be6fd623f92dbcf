"""The configurations of the paper's own code, under the names of its files: "vp/cifar10_ddpmpp_continuous".

Values from github.com/yang-song/score_sde_pytorch, `configs/`; only what says which model it is and how it is sampled.
Left out are those that `NCSNppUNet2DModel` can't express: `ve/ncsn`, `ve/ncsnv2` and
`vp/ddpm/cifar10_unconditional` (networks that are not told the noise level).
"""

_NETWORK = {
    "nf": 128,
    "ch_mult": (1, 2, 2, 2),
    "attn_resolutions": (16,),
    "resamp_with_conv": True,
    "conditional": True,
    "nonlinearity": "swish",
    "beta_min": 0.1,
    "beta_max": 20.0,
}
_NCSNPP = {
    **_NETWORK,
    "name": "ncsnpp",
    "num_res_blocks": 4,
    "embedding_type": "fourier",
    "fourier_scale": 16,
    "fir": True,
    "fir_kernel": (1, 3, 3, 1),
    "resblock_type": "biggan",
    "skip_rescale": True,
    "progressive": "none",
    "progressive_input": "residual",
    "progressive_combine": "sum",
    "init_scale": 0.0,
}
_NCSNPP_256 = {
    **_NCSNPP,
    "ch_mult": (1, 1, 2, 2, 2, 2, 2),
    "num_res_blocks": 2,
    "progressive": "output_skip",
    "progressive_input": "input_skip",
}
_NCSNPP_1024 = {**_NCSNPP_256, "nf": 16, "ch_mult": (1, 2, 4, 8, 16, 32, 32, 32), "num_res_blocks": 1}
_DDPMPP = {**_NCSNPP, "embedding_type": "positional", "fir": False, "progressive_input": "none"}
_DDPM = {**_NETWORK, "name": "ddpm", "num_res_blocks": 2}
_DDPM_256 = {**_DDPM, "ch_mult": (1, 1, 2, 2, 4, 4)}

_CIFAR10_IMAGES = {"image_size": 32, "sigma_max": 50.0, "num_scales": 1000, "dropout": 0.1, "snr": 0.16}
_CELEBA = {"image_size": 64, "sigma_max": 90.0, "num_scales": 1000, "dropout": 0.1, "snr": 0.17}
_LSUN = {"image_size": 256, "sigma_max": 378.0, "num_scales": 2000, "dropout": 0.0, "snr": 0.075}
_FACES_256 = {**_LSUN, "sigma_max": 348.0}
_FACES_1024 = {**_LSUN, "image_size": 1024, "sigma_max": 1348.0, "snr": 0.15}


def _config(sde, continuous, network, data, predictor, **changes):
    """One nested configuration; VE networks are scaled by sigma and take images in [0, 1], others in [-1, 1]."""
    ve = sde == "vesde"
    model = {**network, "sigma_min": 0.01, "scale_by_sigma": ve}
    model |= {key: data[key] for key in ("sigma_max", "num_scales", "dropout")}
    return {
        "training": {"sde": sde, "continuous": continuous},
        "data": {"image_size": data["image_size"], "num_channels": 3, "centered": not ve},
        "model": {**model, **changes},
        "sampling": {
            "method": "pc",
            "predictor": predictor,
            "corrector": "langevin" if ve else "none",
            "snr": data["snr"],
            "n_steps_each": 1,
            "noise_removal": True,
            "probability_flow": False,
        },
    }


def _ve(continuous, network, data, **changes):
    return _config("vesde", continuous, network, data, "reverse_diffusion", **changes)


def _vp(network, data=_CIFAR10_IMAGES, predictor="ancestral_sampling", **changes):
    """The DDPM chain of 1000 steps."""
    return _config("vpsde", False, network, data, predictor, num_scales=1000, **changes)


def _continuous_vp(sde, network, **changes):
    return _config(sde, True, network, _CIFAR10_IMAGES, "euler_maruyama", **changes)


SCORE_SDE_CONFIGS = {
    "ve/cifar10_ddpm": _ve(False, _DDPM, _CIFAR10_IMAGES),
    "ve/cifar10_ncsnpp": _ve(False, _NCSNPP, _CIFAR10_IMAGES, embedding_type="positional"),
    "ve/cifar10_ncsnpp_continuous": _ve(True, _NCSNPP, _CIFAR10_IMAGES),
    "ve/cifar10_ncsnpp_deep_continuous": _ve(True, _NCSNPP, _CIFAR10_IMAGES, num_res_blocks=8),
    "ve/celeba_ncsnpp": _ve(False, _NCSNPP, _CELEBA, embedding_type="positional"),
    "ve/bedroom_ncsnpp_continuous": _ve(True, _NCSNPP_256, _LSUN),
    "ve/church_ncsnpp_continuous": _ve(True, _NCSNPP_256, _LSUN, sigma_max=380.0),
    "ve/celebahq_256_ncsnpp_continuous": _ve(True, _NCSNPP_256, _FACES_256),
    "ve/ffhq_256_ncsnpp_continuous": _ve(True, _NCSNPP_256, _FACES_256),
    "ve/celebahq_ncsnpp_continuous": _ve(True, _NCSNPP_1024, _FACES_1024),
    "ve/ffhq_ncsnpp_continuous": _ve(True, _NCSNPP_1024, _FACES_1024),
    "vp/cifar10_ddpmpp": _vp(_DDPMPP),
    "vp/cifar10_ncsnpp": _vp(_NCSNPP, predictor="reverse_diffusion", embedding_type="positional"),
    "vp/ddpm/cifar10": _vp(_DDPM),
    "vp/ddpm/bedroom": _vp(_DDPM_256, _LSUN),
    "vp/ddpm/church": _vp(_DDPM_256, _LSUN),
    "vp/ddpm/celebahq": _vp(_DDPM_256, _LSUN),
    "vp/ddpm/cifar10_continuous": _continuous_vp("vpsde", _DDPM),
    "subvp/cifar10_ddpm_continuous": _continuous_vp("subvpsde", _DDPM),
}
for _folder, _sde in {"vp": "vpsde", "subvp": "subvpsde"}.items():
    for _depth, _blocks in {"": 4, "_deep": 8}.items():
        SCORE_SDE_CONFIGS |= {
            f"{_folder}/cifar10_ddpmpp{_depth}_continuous": _continuous_vp(_sde, _DDPMPP, num_res_blocks=_blocks),
            f"{_folder}/cifar10_ncsnpp{_depth}_continuous": _continuous_vp(
                _sde, _NCSNPP, num_res_blocks=_blocks, embedding_type="positional"
            ),
        }
