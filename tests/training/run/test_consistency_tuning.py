"""Consistency tuning by the trainer: it goes on where it was stopped, and says beforehand what it lacks."""

# ruff: noqa: F401, F811 (fixtures)

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import assert_same_bits, final_state, metrics, one_thread, run_here, tiny

import train
from evaluation.config import read_evaluation_config
from evaluation.inputs import load_pipeline
from run.config import read_config
from run.distillation import load_denoiser, require_tuned_alike
from run.score_model import build_scheduler, check_score_model
from run.yaml_config import ConfigError
from sde_diffusers import NoiseConditionalClassifier, ScoreSdePipeline

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


@pytest.fixture(scope="module")
def consistency_model(tuned, score_model, tmp_path_factory):
    words = [f"initial_weights={score_model}", "steps=1"]
    return run_here(tuned, tmp_path_factory.mktemp("consistency") / "run", *words) / "pipeline"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    network = NoiseConditionalClassifier(28, 1, 10, block_out_channels=(4, 8), layers_per_block=1, patch_size=4)
    network.save_pretrained(folder := tmp_path_factory.mktemp("classifier"))
    return folder


LOOKS_ALIKE = {"solver_steps": 2, "q": 1, "levels": [80.0, 1.0], "perceptual_weight": 2.0}


@pytest.mark.parametrize("way", [{"solver_steps": 0}, {"solver_steps": 2}, LOOKS_ALIKE])
def test_a_stopped_run_ends_where_an_uninterrupted_one_does(
    tuned, score_model, consistency_model, classifier, tmp_path, way
):
    """Across stages, with dropout, micro-batches and validation; of the solved batches three are used in turn.

    The last goes on from a consistency model, whose teacher is the score model.
    """
    words = [f"initial_weights={consistency_model if 'levels' in way else score_model}", "validate_every=3"]
    words += [f"objective.{key}={value}" for key, value in way.items()]
    if "levels" in way:
        words += [f"teacher={score_model}", f"perceptual_classifier={classifier}", "kept_batches=3"]
    words += ["steps=5", "checkpoint_every=2", "checkpoints_limit=3", "model.dropout=0.1"]
    words.append("gradient_accumulation_steps=2")
    whole = run_here(tuned, tmp_path / "whole", *words)
    middle = whole / "checkpoints" / "step-00000002"
    again = run_here(tuned, tmp_path / "again", *words, f"resume={middle}")
    assert_same_bits(final_state(again), final_state(whole))
    assert metrics(again) == {step: loss for step, loss in metrics(whole).items() if step > 2}


def test_what_was_tuned_draws_in_one_step_and_has_no_ode_to_follow(tuned, consistency_model):
    pipe = ScoreSdePipeline.from_pretrained(consistency_model)
    assert pipe.unet.config.consistency is True
    with pytest.raises(ConfigError, match="solver_steps=1 follows the ODE of initial_weights: .* has no score"):
        given = [str(tuned), "output_dir=x", f"initial_weights={consistency_model}", "objective.solver_steps=1"]
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
        (
            ["initial_weights=x", "teacher=y"],
            "teacher=y is the network whose ODE is followed: it needs",
        ),
        (["initial_weights=x", "perceptual_classifier=y"], "perceptual_weight above 0 need each other, .* y and 0"),
        (["initial_weights=x", "objective.perceptual_weight=1"], "need each other, but are None and 1"),
        (["initial_weights=x", "objective.levels=[100.0]"], r"objective: `levels` must be .*100.0"),
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


def test_evaluation_samples_it_and_refuses_the_rest(consistency_model, tmp_path):
    def load(*overrides):
        own = [f"output_dir={tmp_path}/evaluation", "data.dataset=x", *overrides]
        return load_pipeline(read_evaluation_config([str(consistency_model), *own]), torch.device("cpu"))

    assert load("scheduler={levels: {2: [80.0, 1.5]}}").scheduler.config.levels == {"2": [80.0, 1.5]}
    for overrides, message in (
        (["likelihood.num_images=2"], "likelihood.num_images=2: .* has no score"),
        (["scheduler.class_name=ScoreSdeExponentialScheduler"], "samples.num_images=.* has no score"),
        (["samples.guidance_scale=2"], "`samples.guidance_scale` must be 0 or 1 with a consistency model"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(*overrides)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher=TUNED"], "follows the ODE of teacher: .* has no score"),
        (["teacher=nowhere"], "teacher must be a saved pipeline, but is 'nowhere'"),
        (["perceptual_classifier=SCORE", "objective.perceptual_weight=1"], "must be a classifier of train_class"),
        (
            ["perceptual_classifier=RGB", "objective.perceptual_weight=1"],
            r"is for images \(3, 8, 8\), but the",
        ),
    ],
)
def test_networks_that_it_asks_fit(tuned, score_model, consistency_model, tmp_path, capsys, words, message):
    NoiseConditionalClassifier(8, 3, 10, block_out_channels=(4,), layers_per_block=1).save_pretrained(tmp_path / "rgb")
    named = {"TUNED": str(consistency_model), "SCORE": str(score_model), "RGB": f"{tmp_path}/rgb"}
    for word, folder in named.items():
        words = [given.replace(word, folder) for given in words]
    words += [f"initial_weights={score_model}", "objective.solver_steps=1", f"output_dir={tmp_path}/run"]
    assert train.main([str(tuned), *words]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_teacher_of_other_classes_or_values_is_refused(tuned, score_model, tmp_path, capsys):
    other = changed_copy(score_model, tmp_path / "other", "unet/config.json", class_names=[*"abcdefghij"])
    words = [f"initial_weights={score_model}", "objective.solver_steps=1", f"teacher={other}"]
    assert train.main([str(tuned), *words, f"output_dir={tmp_path}/run"]) == 1
    assert "`teacher` knows the classes ['a', 'b'" in capsys.readouterr().err
    other = changed_copy(score_model, tmp_path / "deep", "unet/config.json", value_dtype="uint16", value_range=[0, 99])
    words = [f"initial_weights={other}", "objective.solver_steps=1"]
    assert train.main([str(tuned), *words, f"output_dir={tmp_path}/run"]) == 1
    assert "`initial_weights` is for images of PixelFormat(dtype='uint16'" in capsys.readouterr().err


def changed_copy(pipeline, target, file, **values):
    """A copy of a pipeline whose configuration `file` has other values."""
    shutil.copytree(pipeline, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | values))
    return target


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time_input": "t"}, "time_input t and not sigma"),
        ({"image_range": [0.0, 1.0]}, r"image_range \(0.0, 1.0\) and not \(-1.0, 1.0\)"),
        ({"sde": "vp"}, r"alpha \[0\..* and not \[1.0, 1.0, 1.0, 1.0\]"),
        ({"sigma_max": 50.0}, None),  # told sigma, the network need not know of which SDE
    ],
)
def test_a_denoiser_of_another_scheduler_is_refused(tuned, score_model, tmp_path, values, message):
    other = changed_copy(score_model, tmp_path / "other", "scheduler/scheduler_config.json", **values)
    config = read_config([str(tuned), "output_dir=x", f"initial_weights={other}"])
    if message is None:
        return require_tuned_alike("initial_weights", str(other), build_scheduler(config))
    with pytest.raises(ConfigError, match=f"trained with another scheduler than this one.*{message}"):
        require_tuned_alike("initial_weights", str(other), build_scheduler(config))


def test_a_denoiser_that_never_learnt_no_class_is_not_asked_for_it(tuned, score_model, tmp_path):
    other = changed_copy(score_model, tmp_path / "other", "unet/config.json", label_dropout=0.0)
    words = [str(tuned), "output_dir=x", f"initial_weights={other}", "objective.solver_steps=1"]
    with pytest.raises(ConfigError, match="never learnt what no class means .* label_dropout=0.1 asks it"):
        load_denoiser(read_config(words), build_scheduler(read_config(words)))
    config = read_config([*words, "label_dropout=0"])
    load_denoiser(config, build_scheduler(config))


def test_a_resumed_run_follows_the_ode_of_the_same_network(tuned, score_model, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(score_model, source)
    words = [f"initial_weights={source}", "objective.solver_steps=1", "steps=3", "checkpoint_every=2"]
    folder = run_here(tuned, tmp_path / "run", *words)
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    checkpoint = folder / "checkpoints" / "step-00000002"
    assert train.main([str(tuned), f"output_dir={folder}", *words, f"resume={checkpoint}"]) == 1
    assert "holds another network than when the run began" in capsys.readouterr().err


def test_a_resumed_run_compares_by_the_same_classifier(tuned, score_model, classifier, tmp_path, capsys):
    own = shutil.copytree(classifier, tmp_path / "classifier")
    words = [f"initial_weights={score_model}", "objective.perceptual_weight=1", f"perceptual_classifier={own}"]
    words += ["steps=2", "checkpoint_every=1", "checkpoints_limit=null"]
    folder = run_here(tuned, tmp_path / "run", *words)
    weights = own / "diffusion_pytorch_model.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    checkpoint = folder / "checkpoints" / "step-00000001"
    assert train.main([str(tuned), f"output_dir={folder}", *words, f"resume={checkpoint}"]) == 1
    assert "perceptual_classifier=" in (error := capsys.readouterr().err) and "holds another network" in error
