"""The models that the app shows. All requests share a network; everything else is made anew for each of them."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bounded_work import TickingBar, Work
from pictures import visible_states
from PIL import Image
from torch import Tensor

from sde_diffusers import (
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdeRestorationPipeline,
)
from sde_diffusers.class_names import names_of
from sde_diffusers.images import PixelFormat
from sde_diffusers.model_card import read_card
from sde_diffusers.weights_digest import weights_digest

SHIPPED = Path(__file__).resolve().parents[1] / "pretrained" / "fashion-mnist-ve"
# All by make_model_data.py
TEST_DATA = Path(__file__).with_name("fashion_mnist.json")
TEST_SHEET, TEST_SHAPE = TEST_DATA.with_suffix(".png"), (1, 28, 28)
DRAWN_SHEET = "drawn-{name}.png"  # of a shipped pipeline, beside this file
DRAWN_COLUMNS = 8
ANY = "Any class"  # the choice of no class

# Name -> (scheduler, its settings, number of steps to begin with). Each image depends on its own seed alone: the
# corrector is annealed Langevin dynamics, since the other one takes its step size from the whole batch.
SAMPLERS = {
    "Reverse SDE, few steps": (ScoreSdeExponentialScheduler, {"eta": 1.0, "solver_order": 2}, 20),
    "Probability flow ODE, few steps": (ScoreSdeExponentialScheduler, {"eta": 0.0, "solver_order": 3}, 15),
    "Probability flow ODE, Heun": (ScoreSdeProbabilityFlowScheduler, {"method": "heun"}, 15),
    "DDIM": (ScoreSdeProbabilityFlowScheduler, {"method": "euler"}, 20),
    "Ancestral": (
        ScoreSdePredictorCorrectorScheduler,
        {"predictor": "ancestral", "corrector": "none", "time_grid": "noise_share"},
        50,
    ),
    "Predictor-corrector": (ScoreSdePredictorCorrectorScheduler, {"corrector": "ald", "snr": 0.1}, 100),
}
DEFAULT_SAMPLER, ODE_SAMPLER = [*SAMPLERS][:2]
NETWORK_KEYS = (  # of a scheduler's configuration: what the network was trained for, and the SDE it is to follow
    "sde",
    "sde_parameters",
    "sampling_sde",
    "sampling_sde_parameters",
    "sigma_min",
    "sigma_max",
    "sigma",
    "beta_min",
    "beta_max",
    "trained_betas",
    "prediction_type",
    "time_input",
    "image_range",
    "num_train_timesteps",
    "sampling_eps",
)


class NoModel(RuntimeError):
    """There is nothing to show; the message says what to do."""


class WatchedPipeline(ScoreSdePipeline):
    """Reports its progress to the `work` that it is done for."""

    work: Work

    def progress_bar(self, iterable=None, total=None):
        return TickingBar(self.work, iterable, total)


class WatchedRestorationPipeline(WatchedPipeline, ScoreSdeRestorationPipeline):
    """The same, for restoration."""


@dataclass(frozen=True)
class ServedModel:
    """A pipeline and what is known of its data.

    Attributes:
        name: what was loaded.
        load: gives the pipeline, whose components are shared; never call that, call what `pipeline` gives.
        classes: {name: label} of each class that has training images; none for an unconditional network.
        test_images: (N, C, H, W) uint8, or None if the data are not known.
        test_scores: of many test images under this very network, by what was measured ("bits_per_dim",
            "reconstruction_error"), or None if they were not computed.
        drawn: (rows, 8, C, H, W) uint8, drawn by this very network, or None: the images of the first seeds, then those
            of the examples (of "Generate"; then those of "Interpolate", unless it is a consistency model).
        about: a sentence or two of its card: how far it was trained, and what to expect.
        consistency: whether it is a consistency model, of which there are samples and nothing else.
    """

    name: str
    load: Callable[[], ScoreSdePipeline]
    classes: dict[str, int]
    test_images: Tensor | None
    test_scores: dict[str, list[float]] | None
    drawn: Tensor | None
    about: str
    consistency: bool

    @property
    def class_names(self) -> list[str]:
        return [*self.classes]

    @property
    def without_class(self) -> bool:
        """Whether images can be drawn without a class: not if the training never withheld it."""
        return not self.classes or self.pipe.unet.config.get("label_dropout") != 0

    @property
    def class_choices(self) -> list[str]:
        """What is offered as a class, the first of which the page begins with."""
        return [ANY, *self.classes] if self.without_class else self.class_names

    @property
    def pipe(self) -> ScoreSdePipeline:
        return self.load()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.pipe._image_shape

    @property
    def pixels(self) -> PixelFormat:
        """The type and range of the data's numbers."""
        return self.pipe.pixel_format

    def scheduler(self, sampler: str, **settings):
        """A new scheduler for this network: one of `SAMPLERS`, with other settings."""
        kind, own_settings, _ = SAMPLERS[sampler]
        network = {key: self.pipe.scheduler.config[key] for key in NETWORK_KEYS}
        return kind.from_config({**network, **own_settings, **settings})

    def pipeline(self, work: Work, scheduler=None, kind=WatchedPipeline):
        """A new pipeline around the shared network, for one request; `work.picture` is the state it is at."""
        scheduler = self.scheduler(DEFAULT_SAMPLER) if scheduler is None else scheduler
        look_at = scheduler.noise_and_denoised

        def noise_and_denoised(output, x, t):  # samplers, restoration and ODE solvers all ask for it
            work.picture = visible_states(x.detach(), scheduler, t)
            return look_at(output, x, t)

        scheduler.noise_and_denoised = noise_and_denoised
        pipe = kind(unet=self.pipe.unet, scheduler=scheduler)
        pipe.work = work
        return pipe

    def labels(self, class_name: str | None) -> int | None:
        """The label of a class by its name; None for any other name."""
        return self.classes.get(class_name)


class Loaded:
    """The pipeline that was asked for last. Another one takes its place once it is asked for.

    Requests that still compute with the earlier one keep it until they end.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._source: str | None = None
        self._pipe: ScoreSdePipeline | None = None

    def pipeline(self, source: str) -> ScoreSdePipeline:
        """That of an id or folder.

        Raises:
            NoModel: if it can't be loaded.
        """
        with self._lock:
            if source != self._source:
                self._source = self._pipe = None  # first, so that memory need not hold both
                self._pipe, self._source = read_pipeline(source), source
            return self._pipe


LOADED = Loaded()


def read_pipeline(source: str) -> ScoreSdePipeline:
    """A pipeline for many requests. Raises NoModel if it can't be loaded."""
    try:
        pipe = ScoreSdePipeline.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        message = f"The model {source} can't be loaded. {type(error).__name__}: {error}"
        inside = Path(source) / "pipeline"  # of a folder of a training run
        if inside.is_dir():
            message = f"{message.rstrip('.')}; did you mean {inside}?"
        raise NoModel(message) from error
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.unet.requires_grad_(False).eval()  # for good: requests that switch gradients off would meet one another
    print(pipe.optimize(batch_size=8, precision="float32"), flush=True)  # a seed draws the same image in any batch
    return pipe


def load_models(model_id: str | None) -> list[ServedModel]:
    """The model of an id or folder; for None those that ship with the repository, the one for the first page first.

    Raises:
        NoModel: if there is none, or one can't be loaded.
    """
    if model_id is not None:
        return [load_model(model_id)]
    if not SHIPPED.is_dir():
        raise NoModel(
            "No model was chosen: set the variable MODEL_ID to the id of a ScoreSdePipeline on the Hub "
            "(`sde-diffusers push-space space_app OWNER/SPACE --model OWNER/MODEL` does)."
        )
    folders = sorted(path.parent for path in SHIPPED.parent.glob("*/model_index.json"))
    first_last = sorted(folders, key=SHIPPED.__eq__)  # so that the first page's is in memory when the app has started
    models = [load_model(str(folder)) for folder in first_last]
    return [models[-1], *models[:-1]]


def load_model(source: str) -> ServedModel:
    """Load a pipeline by the id or folder of a model. Raises NoModel if it can't be."""
    pipe = LOADED.pipeline(source)
    classes = pipe.unet.config.num_class_embeds or 0
    class_names = [*(names_of(pipe.unet) or [])]
    class_names += [f"class {k}" for k in range(len(class_names), classes)]
    digest = weights_digest(pipe.unet)
    test_images = None
    test_data, card = json.loads(TEST_DATA.read_text(encoding="utf-8")), card_header(source)
    if test_data["dataset"] in listed(card.get("datasets")):
        if pipe._image_shape == TEST_SHAPE:  # other sizes may divide the sheet, too
            test_images = read_sheet(TEST_SHEET, TEST_SHAPE).flatten(0, 1)
        if classes == len(test_data["class_names"]) and not names_of(pipe.unet):
            class_names = test_data["class_names"]
    test_scores = next((known["scores"] for known in test_data["models"].values() if known["network"] == digest), None)
    name = Path(source).name if Path(source).is_dir() else source
    sheet = TEST_DATA.with_name(DRAWN_SHEET.format(name=Path(name).name))
    drawn = read_sheet(sheet, pipe._image_shape, digest) if sheet.is_file() else None
    load = partial(LOADED.pipeline, source)
    without_images = listed(card.get("classes_without_images"))
    classes = {name: label for label, name in enumerate(class_names) if name not in without_images}
    consistency = pipe.scheduler.of_consistency_models
    return ServedModel(name, load, classes, test_images, test_scores, drawn, str(card.get("about") or ""), consistency)


def card_header(source: str) -> dict:
    """What the header of a model's card says.

    Beside the Hub's own keys the app looks at "about", a sentence or two for its page, and "classes_without_images",
    the names of classes that the network knows and nobody trained.
    """
    path = Path(source) / "README.md"
    if Path(source).is_dir() and not path.is_file():
        return {}
    try:
        card = read_card(path if path.is_file() else source)
    except (OSError, ValueError):  # no card, or none that can be read
        return {}
    return card.data.to_dict()


def listed(value: str | list[str] | None) -> list[str]:
    """A card's entry of one or several names, as a list."""
    return [value] if isinstance(value, str) else value or []


def read_sheet(path: Path, shape: tuple[int, int, int], network: str | None = None) -> Tensor | None:
    """The images (rows, columns, C, H, W) of a sheet.

    None if the network takes images of another shape, or if the sheet was drawn by another one than that of the digest
    `network`.
    """
    with Image.open(path) as picture:
        drawn_by, sheet = picture.info.get("network"), np.asarray(picture)
    sheet = sheet.reshape(*sheet.shape[:2], -1)
    channels, height, width = shape
    if sheet.shape[2] != channels or sheet.shape[0] % height or sheet.shape[1] % width or drawn_by != network:
        return None
    tiles = sheet.reshape(sheet.shape[0] // height, height, sheet.shape[1] // width, width, channels)
    return torch.from_numpy(tiles.transpose(0, 2, 4, 1, 3).copy())
