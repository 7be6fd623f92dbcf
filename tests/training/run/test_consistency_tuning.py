"""Consistency tuning by the trainer: it goes on where it was stopped, and says beforehand what it lacks."""

# ruff: noqa: F401, F811 (fixtures)

import pytest
import torch
from tiny_training import assert_same_bits, final_state, metrics, one_thread, run_here, tiny

from evaluation.config import read_evaluation_config
from evaluation.inputs import load_pipeline
from run.config import read_config
from run.score_model import check_score_model, load_denoiser
from run.yaml_config import ConfigError
from sde_diffusers import ScoreSdePipeline

CONSISTENCY = """
objective: {objective: consistency, stages: 3}
scheduler: {class_name: ScoreSdeConsistencyScheduler, sde: ve, sigma_min: 0.002, sigma_max: 80.0,
  prediction_type: sample, time_input: sigma, image_range: [-1.0, 1.0]}
"""


@pytest.fixture(scope="module")
def tuned(tiny):
    path = tiny.with_name("tuned.yaml")
    own = ("objective:", "scheduler:", "  {sde: ve")
    path.write_text(
        "\n".join(line for line in tiny.read_text().splitlines() if not line.startswith(own)) + CONSISTENCY
    )
    return path


@pytest.fixture(scope="module")
def score_model(tiny, tmp_path_factory):
    return run_here(tiny, tmp_path_factory.mktemp("score") / "run", "steps=10") / "pipeline"


@pytest.mark.parametrize("way", [{"solver_steps": 0}, {"solver_steps": 2}, {"solver_steps": 2, "q": 1}])
def test_a_stopped_run_ends_where_an_uninterrupted_one_does(tuned, score_model, tmp_path, way):
    """Across stages, with dropout, micro-batches and validation; of the solved batches three are used in turn."""
    words = [f"initial_weights={score_model}", "validate_every=3", f"kept_batches={3 if 'q' in way else 0}"]
    words += [f"objective.{key}={value}" for key, value in way.items()]
    words += ["steps=9", "checkpoint_every=4", "checkpoints_limit=3", "model.dropout=0.1"]
    words.append("gradient_accumulation_steps=2")
    whole = run_here(tuned, tmp_path / "whole", *words)
    middle = whole / "checkpoints" / "step-00000004"
    again = run_here(tuned, tmp_path / "again", *words, f"resume={middle}")
    assert_same_bits(final_state(again), final_state(whole))
    assert metrics(again) == {step: loss for step, loss in metrics(whole).items() if step > 4}
    pipe = ScoreSdePipeline.from_pretrained(whole / "pipeline")
    assert pipe.unet.config.consistency is True
    with pytest.raises(ConfigError, match="solver_steps=1 follows the ODE of initial_weights: .* has no score"):
        given = [str(tuned), "output_dir=x", f"initial_weights={whole}/pipeline", "objective.solver_steps=1"]
        load_denoiser(read_config(given), pipe.scheduler)
    images = pipe(2, 1, class_labels=[0, 1], generator=torch.manual_seed(0), output_type="pt")
    assert images.nfe == 1 and images.images.isfinite().all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "tunes a trained network: initial_weights must name one"),
        (["initial_weights=x", "scheduler.class_name=ScoreSdeExponentialScheduler"], "must be ScoreSdeConsistencySch"),
        (["initial_weights=x", "objective.stages=0"], "objective: `stages` must be"),
        (["initial_weights=x", "model.consistency=true"], "model.consistency is what objective.objective says"),
        (["initial_weights=x", "samples.guidance_scale=2"], "samples.guidance_scale must be 1"),
        (["initial_weights=x", "objective.solver_steps=1", "new_layers=[conv_in]"], "knows neither augmentation nor"),
        (["initial_weights=x", "kept_batches=8", "objective.solver_steps=1"], "kept_batches=8 keeps .* objective.q=1"),
        (["initial_weights=x", "model.preconditioning=null"], "model and scheduler: .* answers x itself"),
        (
            ["initial_weights=x", "model.preconditioning=null", "scheduler.prediction_type=epsilon"],
            "objective: `prediction_type`='epsilon' .* 80 times",
        ),
    ],
)
def test_what_it_lacks_is_said_before_any_work(tuned, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_score_model(read_config([str(tuned), "output_dir=x", *overrides]))


def test_the_sampler_is_of_consistency_models_alone(tiny):
    words = [str(tiny), "output_dir=x", "scheduler.class_name=ScoreSdeConsistencyScheduler"]
    with pytest.raises(ConfigError, match="scheduler.class_name must be .* and with no other one"):
        check_score_model(read_config(words))


def test_evaluation_samples_it_and_refuses_the_rest(tuned, score_model, tmp_path):
    words = [f"initial_weights={score_model}", "steps=1"]
    pipeline = run_here(tuned, tmp_path / "run", *words) / "pipeline"

    def load(*overrides):
        own = [f"output_dir={tmp_path}/evaluation", "data.dataset=x", *overrides]
        return load_pipeline(read_evaluation_config([str(pipeline), *own]), torch.device("cpu"))

    assert load("scheduler={levels: {2: [80.0, 1.5]}}").scheduler.config.levels == {"2": [80.0, 1.5]}
    for overrides, message in (
        (["likelihood.num_images=2"], "likelihood.num_images=2: .* has no score"),
        (["scheduler.class_name=ScoreSdeExponentialScheduler"], "samples.num_images=.* has no score"),
        (["samples.guidance_scale=2"], "`samples.guidance_scale` must be 0 or 1 with a consistency model"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(*overrides)
