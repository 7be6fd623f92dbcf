"""An SDE of one's own: a subclass with a name, defined wherever, works in schedulers, objectives and saved folders."""

import importlib
import json
import linecache
import math
import os
import sys
import textwrap
from types import ModuleType

import pytest
import torch
from exact_scores import Gaussian, exact_output, sampled_moments
from exact_variance import drawn_variance
from warm_python import run_python

from sde_diffusers import (
    VESDE,
    VPSDE,
    DenoisingScoreMatching,
    GaussianSDE,
    NCSNppUNet2DModel,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
)
from sde_diffusers.saved_folders.carried_source import CarriedSource
from sde_diffusers.saved_folders.single_file import source_of

SCHEDULERS = (ScoreSdePredictorCorrectorScheduler, ScoreSdeProbabilityFlowScheduler, ScoreSdeExponentialScheduler)
HALF_PI = math.pi / 2


def bent(t, end):
    """A function that an SDE of this module refers to."""
    return HALF_PI * end * t


class TrigonometricSDE(GaussianSDE):
    """Two functions of time and no more."""

    name = "test_trigonometric"

    def __init__(self, end: float = 0.99):
        self.end = end

    def alpha(self, t):
        return bent(t, self.end).cos()

    def sigma(self, t):
        return bent(t, self.end).sin()


def tiny_network():
    torch.manual_seed(0)
    return NCSNppUNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        attention_resolutions=(),
        time_embedding_type="positional",
        scale_by_sigma=False,
        image_range=(-1, 1),
        init_scale=1.0,
    )


def pipeline(network, scheduler):
    pipe = ScoreSdePipeline(unet=network.eval(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="pt").images


# What follows from two functions of time.


@pytest.mark.parametrize("t", [1e-4, 0.1, 0.5, 0.97, 1.0])
def test_everything_follows_from_alpha_and_sigma(t):
    """Closed forms of alpha = cos(a t), sigma = sin(a t): f = -a tan, g^2 = 2 a tan, half_log_snr = -log tan."""
    sde, a = TrigonometricSDE(0.9), HALF_PI * 0.9
    tangent = math.tan(a * t)
    for given in (t, torch.tensor(t), torch.tensor([t, t], dtype=torch.float64)):
        assert sde.log_alpha(given).flatten()[0].item() == pytest.approx(math.log(math.cos(a * t)), rel=1e-6, abs=1e-9)
        assert sde.drift(given).flatten()[0].item() == pytest.approx(-a * tangent, rel=1e-6)
        assert sde.diffusion(given).flatten()[0].item() == pytest.approx(math.sqrt(2 * a * tangent), rel=1e-6)
        assert sde.half_log_snr(given).flatten()[0].item() == pytest.approx(-math.log(tangent), rel=1e-6, abs=1e-6)
        slopes = [slope.flatten()[0].item() for slope in sde.derivatives(given)]
        assert slopes == pytest.approx([-a * math.sin(a * t), a * math.cos(a * t)], rel=1e-6)
    time = sde.inverse_half_log_snr(sde.half_log_snr(torch.tensor(t, dtype=torch.float64)))
    assert time.item() == pytest.approx(t, rel=1e-12)
    assert sde.prior_sigma == pytest.approx(math.sin(a), rel=1e-15)
    assert repr(sde) == "TrigonometricSDE(end=0.9)"


def test_derivatives_where_gradients_are_off():
    sde = TrigonometricSDE(1.0)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            t = torch.tensor([0.25], dtype=torch.float64)
            assert sde.drift(t).item() == pytest.approx(-HALF_PI * math.tan(HALF_PI / 4))
            assert not sde.drift(t).requires_grad


# In its own body, a test defines an SDE, trains, samples, saves and reloads.


def test_an_sde_of_the_test(tmp_path):
    class PowerSDE(GaussianSDE):
        """alpha = 1 - t^p / 2 and sigma = t: neither variance preserving nor exploding."""

        name = "test_power"
        prediction_type = "v_prediction"
        image_range = (-1.0, 1.0)

        def __init__(self, power: float = 2.0):
            self.power = power

        def alpha(self, t):
            return 1 - t**self.power / 2

        def sigma(self, t):
            return t

    network = tiny_network()
    schedulers = [cls(sde="test_power", sde_parameters={"power": 3.0}) for cls in SCHEDULERS]
    objective = DenoisingScoreMatching(schedulers[0].parameterization)
    assert (objective.parameterization.prediction_type, objective.sde.power) == ("v_prediction", 3.0)
    optimizer, generator = torch.optim.Adam(network.parameters(), 1e-3), torch.Generator().manual_seed(0)
    x_0, noise = 0.5 * torch.randn(2, 16, 1, 8, 8, generator=generator).clamp(-1, 1)
    t, losses = objective.draw_times(16, generator), []
    for _ in range(10):
        loss = objective(network, x_0, noise, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    data = Gaussian([0.4, -0.3], [[0.09, 0.03], [0.03, 0.05]])
    for scheduler in schedulers:
        pipe = pipeline(network, scheduler)
        images = draw(pipe)
        assert images.isfinite().all() and images.std() > 0.01
        pipe.save_pretrained(tmp_path / type(scheduler).__name__)
        again = ScoreSdePipeline.from_pretrained(tmp_path / type(scheduler).__name__)
        again.set_progress_bar_config(disable=True)
        assert type(again.scheduler.sde) is PowerSDE and again.scheduler.sde.power == 3.0
        assert torch.equal(draw(again), images)
        for other in SCHEDULERS:
            assert other.from_config(again.scheduler.config).sde.power == 3.0
    # and the samplers are right, as they are for every SDE
    ode = ScoreSdeExponentialScheduler(sde="test_power")
    ode.set_timesteps(30)
    x = data.moments(ode.sde, 1.0)[0][None, :, None, None] + torch.zeros(1, 2, 1, 1).double()
    for time in ode.timesteps:  # the mean of p_1 goes to the mean of the data
        x = ode.step(exact_output(ode, data, x), time, x).prev_sample
    torch.testing.assert_close(x[0, :, 0, 0], data.mean, rtol=0, atol=1e-6)
    heun = ScoreSdeProbabilityFlowScheduler(sde="test_power", sampling_sde="vp", time_grid="log_snr")
    _, covariance = sampled_moments(heun, data, 100)
    torch.testing.assert_close(covariance, data.covariance, rtol=0, atol=1e-3)


def test_the_trainer_finds_it_by_name():
    from run.config import Config
    from run.score_model import build_objective, build_scheduler

    settings = {"sde": "test_trigonometric", "sde_parameters": {"end": 0.8}}
    scheduler = build_scheduler(Config(output_dir="", steps=1, scheduler=settings))
    assert build_objective(Config(output_dir="", steps=1), scheduler).sde.end == 0.8


# Names.


def test_a_class_that_is_defined_again_takes_its_place():
    definition = textwrap.dedent(
        """
        class AgainSDE(GaussianSDE):
            name = "test_again"
            alpha = lambda self, t: 1 - t / 2
            sigma = lambda self, t: t
        """
    )
    first, second = {"GaussianSDE": GaussianSDE}, {"GaussianSDE": GaussianSDE}
    exec(definition, first)
    exec(definition, second)  # as a notebook's cell that is run twice
    assert type(ScoreSdeExponentialScheduler(sde="test_again").sde) is second["AgainSDE"]


def test_the_packages_names_are_its_own():
    with pytest.raises(ValueError, match="'vp', which is VPSDE's"):
        type("OtherSDE", (VPSDE,), {"name": "vp"})
    assert GaussianSDE.registered["vp"] is VPSDE

    class NamelessSDE(VPSDE):
        """Without a name of its own it is known to nobody."""

    assert NamelessSDE not in GaussianSDE.registered.values()


def test_an_sde_without_its_functions_is_refused():
    with pytest.raises(TypeError, match="alpha"):
        type("NoAlphaSDE", (GaussianSDE,), {"name": "test_no_alpha", "sigma": lambda self, t: t})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sde": "test_trigonometrc"}, "Did you mean 'test_trigonometric'.*must have been defined"),
        ({"sde": "test_trigonometric", "sde_parameters": {"ende": 1.0}}, "Did you mean 'end'"),
        ({"sampling_sde": "test_trigonometric", "sampling_sde_parameters": {"s": 1.0}}, "There are: end"),
        ({"sampling_sde_parameters": {"end": 0.5}}, "`sampling_sde_parameters`.* need a `sampling_sde`"),
    ],
)
@pytest.mark.parametrize("cls", SCHEDULERS)
def test_unknown_names_and_parameters_are_refused(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


def test_parameters_that_are_no_longer_of_use_are_warned_of(tmp_path, caplog):
    """As when a `sampling_sde` is taken away; they stay in the configuration, for when it is given back."""
    scheduler = ScoreSdeExponentialScheduler(sde="ve", sampling_sde="sub_vp", beta_max=15.0)
    scheduler.save_pretrained(tmp_path)
    assert not caplog.text
    plain = ScoreSdeExponentialScheduler.from_pretrained(tmp_path, sampling_sde=None)
    assert "`beta_max`=15.0 has no effect" in caplog.text and "take sigma_max, sigma_min" in caplog.text
    assert plain.config.beta_max == 15.0 and plain.sde is plain.training_sde
    plain.save_pretrained(tmp_path)
    back = ScoreSdeProbabilityFlowScheduler.from_pretrained(tmp_path, sampling_sde="vp")
    assert back.sde.beta_max == 15.0


def test_parameters_by_name_leave_with_their_sde():
    options = {"sampling_sde_parameters": {"shift": 3.0}, "sde_parameters": {"shift": 1.5}}
    scheduler = ScoreSdeExponentialScheduler(sde="flow", sampling_sde="flow", **options)
    for other in ("vp", None):
        swapped = ScoreSdeProbabilityFlowScheduler.from_config(scheduler.config, sampling_sde=other)
        assert swapped.config.sampling_sde_parameters is None and swapped.training_sde.shift == 1.5
    kept = ScoreSdeProbabilityFlowScheduler.from_config(scheduler.config)
    assert (kept.training_sde.shift, kept.sde.shift) == (1.5, 3.0)


def test_parameters_of_the_sampling_sde():
    scheduler = ScoreSdeExponentialScheduler(
        sde="flow", sampling_sde="flow", sampling_sde_parameters={"shift": torch.tensor(3.0)}
    )
    assert (scheduler.training_sde.shift, scheduler.sde.shift) == (1.0, 3.0)
    assert json.loads(scheduler.to_json_string())["sampling_sde_parameters"] == {"shift": 3.0}
    t = torch.tensor(0.5, dtype=torch.float64)
    assert scheduler.training_time(t).item() == pytest.approx(0.75)
    other = ScoreSdeExponentialScheduler(sde="cosine_vp", sde_parameters={"s": 0.1}, sampling_sde="cosine_vp")
    assert other.sde is other.training_sde


# Folders that need no package.

WITHOUT_THE_PACKAGE = """
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

folder = Path(sys.argv[1])
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
pipe.save_pretrained(folder.with_name("again"))
generator = torch.Generator().manual_seed(0)
images = pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="pt").images
torch.save({"images": images, "sde": repr(pipe.scheduler.sde)}, folder.with_name("images.pt"))
"""


def test_a_saved_folder_carries_it(tmp_path):
    """With the function, the constant and the import that it refers to, into a process that has neither."""
    scheduler = ScoreSdeExponentialScheduler(sde="test_trigonometric", sde_parameters={"end": 0.95}, sampling_sde="vp")
    pipe = pipeline(tiny_network(), scheduler)
    pipe.save_pretrained(tmp_path / "saved")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    arguments = ["-c", WITHOUT_THE_PACKAGE, tmp_path / "saved"]
    done = run_python(arguments, environment, without=["sde_diffusers", "test_own_sde"])
    assert done.returncode == 0, done.stderr
    results = torch.load(tmp_path / "images.pt")
    assert torch.equal(results["images"], draw(pipe)) and results["sde"] == repr(pipe.scheduler.sde)
    modules = [next((tmp_path / name / "scheduler").glob("scheduling_score_sde_*.py")) for name in ("saved", "again")]
    assert modules[0].name == modules[1].name
    assert modules[0].read_text() == modules[1].read_text()
    assert modules[0].read_text().count("\nclass TrigonometricSDE") == 1
    assert "test_own_sde" not in modules[0].read_text()


def run_definition(source, **given):
    """The namespace of a module of such source, found by `inspect` as a notebook's cell is."""
    name = f"<cell {len(linecache.cache)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = {"__name__": "__main__", **given}
    exec(compile(source, name, "exec"), namespace)
    return namespace


def test_a_class_of_a_notebook_is_carried():
    source = textwrap.dedent(
        """
        import math as m
        import torch.nn.functional as F
        from functools import lru_cache
        from typing import ClassVar

        from torch import float64

        from sde_diffusers import GaussianSDE as Base
        from sde_diffusers.sdes import function_of_time, VPSDE

        RATE, SHIFTS = 2.0, {"a": [1, 2]}

        @lru_cache
        def rate():
            return RATE * len(SHIFTS["a"]) / m.e

        class Helper:
            def of(self, t):
                return F.softplus(t.to(float64)) * rate()

        class CellSDE(Base):
            name = "test_cell"
            kinds: ClassVar[list[str]] = ["x"]

            def __init__(self, end=0.5):
                self.end = end

            @function_of_time
            def log_alpha(self, t):
                return -0.1 * self.end * Helper().of(t) + 0.1 * self.end * Helper().of(0 * t)

            def sigma(self, t):
                return VPSDE().sigma(t) + 0 * sum(k for k in range(3)) * t
        """
    )
    cls = run_definition(source)["CellSDE"]
    scheduler = ScoreSdeExponentialScheduler(sde="test_cell")
    text = source_of(type(scheduler), [cls])
    namespace = {"__name__": "carried"}
    exec(compile(text, "carried", "exec"), namespace)
    t = torch.linspace(0.1, 1, 5)
    carried = namespace["ScoreSdeExponentialScheduler"](sde="test_cell", sde_parameters={"end": 0.3}).sde
    assert type(carried) is namespace["CellSDE"] is not cls
    assert torch.equal(carried.alpha(t), cls(0.3).alpha(t)) and torch.equal(carried.sigma(t), cls(0.3).sigma(t))
    assert text == source_of(type(scheduler), [cls])


@pytest.mark.parametrize(
    "body, message",
    [
        ("return torch_tensor * t", "refers to torch_tensor, a Tensor"),
        ("return nowhere(t)", "refers to nowhere, which is not found"),
        ("return own_module.f(t)", "refers to the module own_module"),
        ("return expand_like(t)", "the package has a expand_like of its own"),
        (
            "import helper_of_mine as h; return h.half(t)",
            "line 5 of it imports helper_of_mine, which is not installed",
        ),
        ("from .helpers import half; return half(t)", "line 5 of it imports .helpers"),
        ("from sde_diffusers.sdes.vp import VPSDE as V; return V().alpha(t)", "imports sde_diffusers.sdes.vp"),
    ],
)
def test_what_cannot_be_carried_is_named(body, message):
    source = textwrap.dedent(
        f"""
        import torch

        def expand_like(t):
            return t

        class UnsavableSDE(GaussianSDE):
            name = "test_unsavable"

            def alpha(self, t):
                {body}

            def sigma(self, t):
                return t
        """
    )
    given = {"GaussianSDE": GaussianSDE, "torch_tensor": torch.ones(()), "own_module": ModuleType("own_module")}
    run_definition(source, **given)
    with pytest.raises(ValueError, match=f"can't be saved: .*{message}"):
        source_of(ScoreSdeExponentialScheduler, [GaussianSDE.registered["test_unsavable"]])


def test_classes_without_methods_of_their_own_are_carried(registry, tmp_path, monkeypatch):
    """An SDE that changes attributes alone, an enumeration and a data class; methods may import what is installed."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sdes_of_few_words.py").write_text(
        textwrap.dedent(
            """
            import dataclasses
            import enum

            from sde_diffusers import VPSDE

            class Kind(enum.Enum):
                SLOW = 0.5

            @dataclasses.dataclass
            class Settings:
                scale: float = Kind.SLOW.value

            class SlowSDE(VPSDE):
                name = "test_slow"

                def log_alpha(self, t):
                    from math import exp

                    return super().log_alpha(t) * Settings().scale * exp(0)

            class TitledSDE(SlowSDE):
                name = "test_titled"
                title = "slow VP"
            """
        )
    )
    cls = importlib.import_module("sdes_of_few_words").TitledSDE
    namespace = {"__name__": "carried"}
    exec(compile(source_of(ScoreSdeExponentialScheduler, [cls]), "carried", "exec"), namespace)
    assert namespace["TitledSDE"].title == "slow VP" and namespace["TitledSDE"] is not cls
    assert torch.equal(namespace["TitledSDE"]().alpha(torch.tensor(0.5)), cls().alpha(torch.tensor(0.5)))


def test_a_pipeline_that_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    functions = {"alpha": lambda self, t: 1 - t / 2, "sigma": lambda self, t: t}
    type("UnwrittenSDE", (GaussianSDE,), {"name": "test_no_source", "__module__": "__main__", **functions})
    pipe = pipeline(tiny_network(), ScoreSdeExponentialScheduler(sde="test_no_source"))
    with pytest.raises(ValueError, match="UnwrittenSDE can't be saved: its source is not found"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_carried_source_is_what_was_written():
    carried = CarriedSource(set(), ("sde_diffusers",))
    carried.add(TrigonometricSDE)
    assert [*carried.definitions] == ["HALF_PI", "bent", "TrigonometricSDE"]
    assert carried.definitions["HALF_PI"] == f"HALF_PI = {math.pi / 2!r}"
    assert [*carried.package_modules] == ["sde_diffusers.sdes.gaussian"] and not carried.imports


# Functions that contradict each other.


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(GaussianSDE, "registered", dict(GaussianSDE.registered))


def of_log_alpha(base, **functions):
    """An SDE that changes functions of another one, and inherits the rest."""
    return type("Changed", (base,), {"name": "test_changed", "__module__": __name__, **functions})


@pytest.mark.parametrize(
    ("base", "functions", "message"),
    [
        (VPSDE, {"log_alpha": lambda self, t: -5 * t**3}, "its inverse_half_log_snr .* must define"),
        (VPSDE, {"beta": lambda self, t: 20 * t**2 + 0.1}, "its drift at t = .* follows from its alpha and sigma"),
        (VESDE, {"sigma": lambda self, t: 0.01 + 20 * t}, "its inverse_half_log_snr"),
        (VPSDE, {"diffusion": lambda self, t: 0 * t + 1}, r"its diffusion\^2 at t"),
        (
            GaussianSDE,
            {"alpha": lambda self, t: t, "sigma": lambda self, t: 1 - t},
            "add noise from t = 0, the images",
        ),
        (
            GaussianSDE,
            {"alpha": lambda self, t: 1 - 2 * t, "sigma": lambda self, t: t},
            "finite alpha and sigma above 0",
        ),
    ],
    ids=["log_alpha", "beta", "sigma", "diffusion", "backwards", "negative"],
)
@pytest.mark.parametrize("cls", SCHEDULERS)
def test_functions_that_contradict_each_other_are_refused(registry, cls, base, functions, message):
    of_log_alpha(base, **functions)
    with pytest.raises(ValueError, match=f"`sde`='test_changed'.*{message}"):
        cls(sde="test_changed")
    with pytest.raises(ValueError, match=f"`sampling_sde`='test_changed'.*{message}"):
        cls(sde="vp", sampling_sde="test_changed")


def test_the_same_functions_on_the_base_draw_the_data(registry):
    """The base computes from them what the VP SDE would have given of its own."""
    functions = {
        "log_alpha": lambda self, t: -5 * t**3,
        "sigma": lambda self, t: (-torch.expm1(2 * self.log_alpha(t))).sqrt(),
    }
    of_log_alpha(GaussianSDE, **functions)
    data = Gaussian([0.0], [[0.25]])
    scheduler = ScoreSdePredictorCorrectorScheduler(sde="test_changed", corrector="none")
    _, covariance = sampled_moments(scheduler, data, 300)
    assert covariance.item() == pytest.approx(0.25, rel=0.08)


SCALE = 2.0


def scaled(t):
    return SCALE * t


def test_a_name_with_two_meanings_is_not_carried(registry):
    """A class and its base from two modules, each with a constant of one name: in one file the last would be both."""
    other = ModuleType("test_own_sde_other")
    source = textwrap.dedent(
        """
        from test_own_sde import TwiceSDE
        SCALE = 3.0
        class ThriceSDE(TwiceSDE):
            name = "test_thrice"
            def sigma(self, t):
                return SCALE * super().sigma(t)
        """
    )
    linecache.cache["test_own_sde_other.py"] = (len(source), None, source.splitlines(True), "test_own_sde_other.py")
    sys.modules["test_own_sde_other"] = other
    try:
        exec(compile(source, "test_own_sde_other.py", "exec"), vars(other))
        scheduler = ScoreSdeExponentialScheduler(sde="test_thrice", prediction_type="score", time_input="sigma")
        assert scheduler.sde.sigma(1.0).item() == 6.0
        with pytest.raises(
            ValueError, match="scaled can.t be saved: SCALE means .* in two places. Rename one of them"
        ):
            source_of(type(scheduler), [other.ThriceSDE])
    finally:
        del sys.modules["test_own_sde_other"]


class TwiceSDE(GaussianSDE):
    name = "test_twice"

    def alpha(self, t):
        return 0 * t + 1

    def sigma(self, t):
        return scaled(t)


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral"])
def test_a_relative_of_the_papers_has_steps_of_its_own(registry, predictor):
    """And not those of the paper's code, whose table of betas is the linear one."""

    class BentVPSDE(VPSDE):
        name = "test_bent_vp"

        def beta(self, t):
            return self.beta_min + self.beta_max * t**2

        def log_alpha(self, t):
            return -0.5 * (self.beta_min * t + self.beta_max * t**3 / 3)

        inverse_half_log_snr = GaussianSDE.inverse_half_log_snr

    scheduler = ScoreSdePredictorCorrectorScheduler(sde="test_bent_vp", predictor=predictor, corrector="none")
    generator = torch.Generator().manual_seed(0)
    assert drawn_variance(scheduler, 0.25**2, 400, 4000, generator) == pytest.approx(0.25**2, rel=0.12)
