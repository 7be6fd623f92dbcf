from setuptools import find_packages, setup

# Lower bounds are the lowest releases that the tests were run with.
TRAIN = [
    "accelerate>=1.10",
    "datasets>=5.0.1",
    "matplotlib>=3.9",
    "omegaconf>=2.3",
    "psutil>=7.0",
    "tensorboard>=2.18",
    "tifffile>=2024.8.10",
    "torchvision>=0.24",
    "tqdm>=4.67",
]

EVAL = [
    "torch-fidelity>=0.4",
    "transformers>=5.0",
]

CLEAN_FID = [
    "clean-fid>=0.1.35",
    "scipy>=1.14,<1.18",  # clean-fid uses what scipy 1.18 removed
]

DOCS = [
    "furo>=2024.8.6",
    "ipykernel>=6.30",
    "myst-nb>=1.4",
    "myst-parser>=4.0.1",
    "nbclient>=0.10.2",
    "nbformat>=5.10.4",
    "sphinx-copybutton>=0.5.2",
    "sphinx>=8.1.3",
    "sybil>=9.1",
]

COMPLETION = ["shtab>=1.7.1"]

SPACE = ["gradio>=6.31"]

TEST = [
    "hypothesis>=6.168",
    "mypy>=2.4.1",
    "packaging>=24.2",
    "pytest>=8.4",
    "pytest-xdist>=3.8",
    "ruff>=0.15",
    "setuptools>=77.0.3",  # builds the wheel that is tested
]

setup(
    name="sde-diffusers",
    version="0.1.0",
    description="Score-based generative models through stochastic differential equations, for diffusers",
    license="Apache-2.0",
    packages=find_packages(include=["sde_diffusers*"]),
    package_data={"sde_diffusers": ["__init__.pyi", "py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "diffusers>=0.40",
        "huggingface_hub>=1.23",
        "numpy>=2.0",
        "pillow>=11.0",
        "safetensors>=0.8",
        "torch>=2.9",
    ],
    entry_points={"console_scripts": ["sde-diffusers = sde_diffusers.cli:main"]},
    extras_require={
        "train": TRAIN,
        "eval": EVAL,
        "clean-fid": CLEAN_FID,
        "space": SPACE,
        "completion": COMPLETION,
        "docs": DOCS,
        "dev": [*TRAIN, *EVAL, *CLEAN_FID, *DOCS, *SPACE, *COMPLETION, *TEST],
    },
)
