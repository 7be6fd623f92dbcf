"""The trainer, through its command line where signals and processes matter."""

# ruff: noqa: F401, F811 (fixtures)

import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_training import (
    assert_same_bits,
    final_state,
    metrics,
    one_thread,
    run_here,
    start,
    tiny,
    wait_for,
)
from warm_python import ranks

import train
from run.checkpoints import list_checkpoints
from run.config import read_config
from run.draws import draw_examples
from run.figures import loss_curve
from run.interruption import Interruption
from run.lock import FolderLock
from run.score_model import build_objective, build_scheduler, check_score_model
from run.training_run import TrainingRun
from run.written_folder import mend, written_folder
from run.yaml_config import ConfigError, as_dict
from sde_diffusers import ScoreSdePipeline

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "training" / "configs").rglob("*.yaml"))
ACCELERATE = ("-m", "accelerate.commands.accelerate_cli", "launch")
FSDP = (*ACCELERATE, "--config_file", str(ROOT / "training/accelerate/fsdp_8_gpus.yaml"), "--num_processes")
IN_SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as that file has it: run/test_launching.py
SHARD = r"Network: ([\d,]+) parameters, on 2 x cpu \(FSDP: ([\d,]+) of them on the first\)"


# ---- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    overrides = ["data.dataset=somewhere"] if path.stem == "folder" else []
    check_score_model(read_config([str(path), *overrides]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", r"optimizer\.learning_rat is not a key"),
        ("stepz=1", r"stepz is not a key. Did you mean steps"),
        ("model.dropuot=0.1", r"model\.dropuot is not a key. Did you mean dropout"),
        ("scheduler.sigma_mx=3", r"scheduler\.sigma_mx is not a key. Did you mean sigma_max"),
        ("objective.objectiv=edm", r"objective\.objectiv is not a key. Did you mean objective"),
        ("steps=many", r"steps: .*many"),
        ("steps=0", r"steps must be at least 1, but is 0"),
        ("optimizer.lr=-1", r"optimizer\.lr must be a finite number above 0, but is -1"),
        ("optimizer.name=sgd", r"optimizer\.name must be one of adamw, muon, but is 'sgd'"),
        ("optimizer.lr=nan", r"optimizer\.lr must be a finite number above 0, but is nan"),
        ("optimizer.betas=[0.9,1.5]", r"optimizer\.betas must be two numbers in \[0, 1\)"),
        ("optimizer.betas=[0.9]", r"optimizer\.betas must be two numbers in \[0, 1\), but is \['0\.9'\]"),
        ("optimizer.weight_decay=inf", r"optimizer\.weight_decay must be a finite number of at least 0, but is inf"),
        ("process_timeout=1e30", r"process_timeout must be above 0 and at most 1e9 seconds, but is 1e\+30"),
        ("seed=18446744073709551616", r"seed must be an integer from 0 to 2\^64 - 1, but is 18446744073709551616"),
        ("data=3", r"data must be a section of keys dataset, data_dir, .* and their values, but is 3"),
        ("model=[1]", r"model must be a section of keys and their values, but is \[1\]"),
        ("log_with={a: 1}", r"log_with must be a list of tensorboard, .*, but is \{'a': 1\}"),
        ("samples=[1]", r"samples must be a section of keys .*rows.* and their values, but is \[1\]"),
        ("mixed_precision=fp8", r"mixed_precision must be one of auto, no, bf16, fp16, but is 'fp8'"),
        ("label_dropout=1", r"label_dropout must be in \[0, 1\)"),
        ("label_dropout=0 samples.guidance_scale=2", r"samples\.guidance_scale=2 asks the network without a class"),
        ("label_dropout=0 samples.guidance_scale=0", r"samples\.guidance_scale=0 asks the network without a class"),
        (
            "scheduler.sigma_min=auto",
            "scheduler.sigma_min=auto: only scheduler.sigma_max, model.sigma_data, objective.sigma_data may be auto",
        ),
        ("model.sigma_max=auto", "model.sigma_max=auto: only scheduler.sigma_max"),
        ("noise_levels=30000", "noise_levels must be from 0 to 1000"),
        (
            "power_averages.sigma_rel=[0.1234567,0.12345671]",
            "power_averages.sigma_rel must be .* differ in six digits",
        ),
        (
            "distance_every=1 distance.features=cifar10 distance.num_inference_steps=1000001",
            r"distance\.num_inference_steps and scheduler: .*at most 1,000,000",
        ),
        ("model.num_class_embeds=null", r"label_dropout .* need a number of classes"),
        ("model.label_dropout=0.2", r"model\.label_dropout is what label_dropout of the training says"),
        (
            "model.value_dtype=uint16",
            r"model\.value_dtype is what the images say, but is given as uint16: leave it out",
        ),
        ("model.value_range=[0,9]", r"model\.value_range is what data\.value_range says, .* given as \[0, 9\]"),
        ("model.class_names=[x,y]", r"model\.class_names is what the images say, but is given as \['x', 'y'\]"),
        ("model.preset=huge", r"model\.preset must be null or one of cifar10"),
        ("model.dropout=2", r"model: `dropout` must be in \[0, 1\)"),
        ("model.image_range=[0,1]", r"`image_range` must be \(-1, 1\) with preconditioning"),
        ("scheduler.image_range=[0,1]", r"model\.image_range is .* they must be equal"),
        ("scheduler.prediction_type=epsilon", r"needs a scheduler with `prediction_type`='sample'"),
        ("scheduler.time_input=999t", r"needs a scheduler with .*`time_input`='sigma'"),
        ("scheduler.class_name=DDIMScheduler", r"scheduler\.class_name must be one of ScoreSde"),
        ("scheduler.sde=vpp", r"scheduler: `sde` must be one of"),
        ("objective.objective=mse", r"objective: `objective` must be one of 'sigma2'"),
        ("--steps=3", r"argument '--steps=3' must have the form key=value"),
    ],
)
def test_refuses_configuration(tiny, override, message):
    with pytest.raises(ConfigError, match=message):
        check_score_model(read_config([str(tiny), "output_dir=x", *re.split(r" (?=[a-z_.]+=)", override)]))


VP_OF_ITS_OWN = ["scheduler.sde=vp", "scheduler.sigma_min=null", "scheduler.sigma_max=null"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*VP_OF_ITS_OWN, "scheduler.time_input=999t", "model.scale_by_sigma=true"],
            "divides its output by the",
        ),
        (["scheduler.time_input=index", "objective.objective=discrete"], "takes the logarithm of the value"),
    ],
)
def test_refuses_networks_that_do_not_fit_their_time_input(tiny, overrides, message):
    words = [str(tiny), "output_dir=x", "model.preconditioning=null", "objective.objective=sigma2", *overrides]
    with pytest.raises(ConfigError, match=f"model and scheduler: The network {message}"):
        check_score_model(read_config(words))


def test_refuses_more_noise_than_the_samples_have_steps(tiny):
    words = [str(tiny), "output_dir=x", "scheduler.class_name=ScoreSdeExponentialScheduler", "scheduler.eta=30"]
    words.append("samples.num_inference_steps=20")
    with pytest.raises(ConfigError, match="samples.num_inference_steps and scheduler: `eta`=30 is too much noise"):
        check_score_model(read_config(words))


def test_refuses_missing_keys_and_files(tmp_path):
    (tmp_path / "empty.yaml").write_text("steps: 3\n")
    with pytest.raises(ConfigError, match="must be given: .*data.dataset"):
        read_config([str(tmp_path / "empty.yaml")])
    with pytest.raises(ConfigError, match="no configuration file"):
        read_config([str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.dataset=nowhere"], "data: dataset 'nowhere' is not a folder"),
        (["data.split=tets"], "data: split 'tets' does not exist"),
        (["model.num_class_embeds=3"], "model.num_class_embeds is 3, but .* has the label 9"),
        (["model.in_channels=3"], "model.in_channels is 3, but the images have 1"),
        (["gradient_accumulation_steps=5"], "batch_size must be a multiple of .* but is 12"),
        (["resume=elsewhere"], "resume must be null, .* but is 'elsewhere'"),
        pytest.param(
            ["mixed_precision=fp16"],
            "needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it"),
        ),
    ],
)
def test_refuses_before_any_work(tiny, tmp_path, capsys, overrides, message):
    assert train.main([str(tiny), f"output_dir={tmp_path}/run", *overrides]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("override", ["compile=true", "mixed_precision=fp16", "optimizer.name=muon"])
def test_refuses_what_is_not_done_in_shards(tiny, tmp_path, capsys, monkeypatch, override):
    for name, value in IN_SHARDS.items():
        monkeypatch.setenv(name, value)
    assert train.main([str(tiny), f"output_dir={tmp_path}/run", override]) == 1
    assert f"{override} " in (error := capsys.readouterr().err)
    assert "not supported with FSDP" in error or "of which FSDP gives each process a share" in error


def test_a_base_is_overridden_by_the_file_and_that_by_arguments(tmp_path, tiny):
    (tmp_path / "child.yaml").write_text(f"base: {tiny}\nsteps: 7\nseed: 3\noutput_dir: out\n")
    config = read_config([str(tmp_path / "child.yaml"), "seed=4"])
    assert (config.steps, config.seed, config.batch_size) == (7, 4, 12)
    assert config.objective["sigma_data"] == 0.7
    json.dumps(as_dict(config))


# ---- draws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_by_image", [True, False])
def test_processes_share_the_draws_of_one(tiny, noise_by_image):
    config = read_config([str(tiny), "output_dir=x"])
    objective = build_objective(config, build_scheduler(config))
    images, labels = torch.randint(256, (8, 1, 4, 4), dtype=torch.uint8), torch.arange(8)
    options = {"objective": objective, "key": (0, 5), "dequantize": True, "label_dropout": 0.5}
    options["noise_by_image"] = noise_by_image
    whole = draw_examples(images, labels, **options)
    halves = [
        draw_examples(images[part], labels[part], **options, rank=rank, world_size=2)
        for rank, part in enumerate((slice(0, 4), slice(4, 8)))
    ]
    for name in whole._fields:
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name)), name
    assert -1 <= whole.x_0.min() < whole.x_0.max() <= 1
    assert 0 < (whole.labels == -1).sum() < 8
    other_step = draw_examples(images, labels, **{**options, "key": (0, 6)})
    assert not torch.equal(whole.noise, other_step.noise) and not torch.equal(whole.times, other_step.times)
    assert len({tuple(row.flatten().tolist()) for row in whole.noise}) == 8


def test_a_run_of_an_earlier_release_keeps_its_draws(tiny, tmp_path, capsys):
    """Its checkpoints do not say how noise is drawn: one generator drew that of the whole batch."""
    folder = run_here(tiny, tmp_path / "run", "steps=2", "checkpoint_every=1")
    shutil.rmtree(folder / "pipeline")
    state = folder / "checkpoints" / "step-00000001" / "state.json"
    content = json.loads(state.read_text())
    assert content.pop("noise_by_image")
    state.write_text(json.dumps(content))
    run_here(tiny, folder, "steps=2", f"resume={state.parent}")
    assert "an earlier release, whose draws of noise it keeps" in capsys.readouterr().out
    assert not json.loads((folder / "checkpoints" / "step-00000002" / "state.json").read_text())["noise_by_image"]


# ---- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(tiny, tmp_path_factory):
    """60 steps without interruption, with everything that a run can write."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    torch.set_num_threads(1)
    extras = ["validate_every=20", "sample_every=30", "checkpoint_every=10", "checkpoints_limit=3"]
    larger = ["model.block_out_channels=[16]", "model.patch_size=2", "optimizer.lr=1e-2", "batch_size=32"]
    assert train.main([str(tiny), f"output_dir={folder}", "steps=60", *larger, *extras]) == 0  # with all pictures
    return folder


def test_learns_from_real_images_and_leaves_a_pipeline(whole_run):
    losses = list(metrics(whole_run).values())
    assert list(metrics(whole_run)) == list(range(1, 61))
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    pipe = ScoreSdePipeline.from_pretrained(whole_run / "pipeline")
    assert pipe.unet.config.label_dropout == 0.1  # "no class" was learnt
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, num_inference_steps=3, class_labels=[0, 9], output_type="pt").images
    assert images.shape == (2, 1, 28, 28) and images.isfinite().all()
    averaged = load_file(list_checkpoints(whole_run / "checkpoints")[-1] / "ema.safetensors")
    assert_same_bits(dict(pipe.unet.state_dict()), averaged)


def test_keeps_the_best_model_figures_and_a_few_checkpoints(whole_run):
    validation = metrics(whole_run, "validation_loss")
    assert list(validation) == [20, 40, 60] and validation[60] < validation[20]
    assert (whole_run / "best" / "model_index.json").exists()
    assert [path.name for path in list_checkpoints(whole_run / "checkpoints")] == [
        f"step-{step:08d}" for step in (40, 50, 60)
    ]
    state = json.loads((whole_run / "checkpoints" / "step-00000060" / "state.json").read_text())
    assert math.isclose(state["best_loss"], min(validation.values()))
    names = {path.name for path in (whole_run / "figures").iterdir()}
    assert names == {"noising.png", "loss.png", "samples-00000030.png", "samples-00000060.png"}
    for name in names:
        with Image.open(whole_run / "figures" / name) as image:
            image.load()
            assert len(image.convert("L").getcolors(256)) > 10, name
    assert list((whole_run / "tensorboard").iterdir())


@pytest.mark.parametrize("losses", [(3.0, 2.0, 1.0), (1.0, 0.0, -1.0)], ids=["positive", "of any sign"])
@pytest.mark.parametrize("validation", [((), ()), ((2, 3), (2.5, 1.5))], ids=["training", "validation"])
def test_loss_curves_show_what_there_is(losses, validation):
    """In blue and orange, whether or not there is a logarithm of the losses."""
    drawn = {color for _, color in loss_curve((1, 2, 3), losses, *validation).getcolors(10**6)}
    assert (31, 119, 180) in drawn and ((255, 127, 14) in drawn) == bool(validation[0])


def test_a_worse_model_does_not_replace_the_best(tiny, tmp_path):
    config = ["validate_every=20", "checkpoint_every=20"]
    folder = run_here(tiny, tmp_path / "run", *config, "steps=20", "ema.decay=0.0")
    best = load_file(folder / "best" / "unet" / "diffusion_pytorch_model.safetensors")
    checkpoint = folder / "checkpoints" / "step-00000020"
    state = json.loads((checkpoint / "state.json").read_text())
    state["best_loss"] = 0.0  # as if an earlier model had been perfect
    (checkpoint / "state.json").write_text(json.dumps(state))
    run_here(tiny, folder, *config, "steps=40", "resume=latest", "ema.decay=0.5")
    again = load_file(folder / "best" / "unet" / "diffusion_pytorch_model.safetensors")
    assert_same_bits(again, best)


def test_signals_and_crashes_leave_no_trace(tiny, tmp_path, capsys):
    """SIGTERM, then kill -9, each at some moment; resumed, the run ends where the uninterrupted one did."""
    folder = tmp_path / "run"
    overrides = ["steps=60", "model.dropout=0.1", "checkpoint_every=10", "checkpoints_limit=3"]
    process = start(tiny, folder, *overrides)
    wait_for(folder / "checkpoints" / "step-00000010", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    saved = list_checkpoints(folder / "checkpoints")[-1]
    assert f"SIGTERM: saved {saved}" in output and "resume=latest" in output
    stopped_at = int(saved.name[5:])
    assert 10 <= stopped_at < 40

    process = start(tiny, folder, *overrides, "resume=latest")
    wait_for(folder / "checkpoints" / f"step-{stopped_at // 10 * 10 + 10:08d}", process)
    process.kill()
    process.communicate()
    assert list_checkpoints(folder / "checkpoints")[-1].name != "step-00000060"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # a line cut short
    leftover = folder / "checkpoints" / ".step-00000099.incomplete"
    leftover.mkdir()

    run_here(tiny, folder, *overrides, "resume=latest")
    assert "Resumed from" in capsys.readouterr().out
    assert list(metrics(folder)) == list(range(1, 61))
    twin = run_here(tiny, tmp_path / "twin", "steps=60", "model.dropout=0.1")
    assert_same_bits(final_state(folder), final_state(twin))
    assert metrics(folder) == metrics(twin)


def test_shards_follow_one_process_and_change_hands(tiny, tmp_path):
    """FSDP goes on from a checkpoint of one process, and one process from a checkpoint of FSDP."""
    overrides = [
        "steps=12",
        "gradient_clip=0.3",
        "optimizer.lr=1e-2",
        "validate_every=4",
        "gradient_accumulation_steps=2",
    ]
    overrides += ["checkpoint_every=4", "checkpoints_limit=null"]
    whole = run_here(tiny, tmp_path / "whole", *overrides)

    def resume(source, name, step):
        """A folder `name` with the checkpoints of `source` up to this step, to go on from."""
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("pipeline", "best", "tensorboard"))
        for checkpoint in list_checkpoints(tmp_path / name / "checkpoints"):
            if int(checkpoint.name[5:]) > step:
                shutil.rmtree(checkpoint)
        return tmp_path / name

    shards = resume(whole, "shards", 4)
    processes = [start(tiny, shards, *overrides, "resume=latest", **rank, **IN_SHARDS) for rank in ranks(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    parameters, shard = map(lambda text: int(text.replace(",", "")), re.search(SHARD, outputs[0][0]).groups())
    assert 0.45 * parameters < shard < 0.55 * parameters
    last = run_here(tiny, resume(shards, "last", 8), *overrides, "resume=latest")

    for folder in (shards, last):
        for name in ("loss", "grad_norm", "validation_loss"):
            ours, theirs = metrics(folder, name), metrics(whole, name)
            assert ours.keys() == theirs.keys() and max(abs(ours[step] - theirs[step]) for step in ours) < 1e-4, name
        ours, theirs = final_state(folder), final_state(whole)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-4, msg=str(key))
        ScoreSdePipeline.from_pretrained(folder / "pipeline")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_shard_on_a_gpu_follows_a_whole_network(tiny, tmp_path, precision):
    overrides = ["channels_last=false", f"mixed_precision={precision}", "gradient_clip=0.3", "validate_every=6"]
    overrides += ["sample_every=6"]
    for name, launcher, expected in (("shard", (*FSDP, "1"), "x cuda (FSDP: "), ("whole", (), "x cuda, ")):
        output = (process := start(tiny, tmp_path / name, *overrides, launcher=launcher)).communicate(timeout=300)
        assert process.returncode == 0 and expected in output[0], output
    for name in ("loss", "grad_norm", "validation_loss"):
        ours, theirs = metrics(tmp_path / "shard", name), metrics(tmp_path / "whole", name)
        assert ours.keys() == theirs.keys() and max(abs(ours[step] - theirs[step]) for step in ours) < 0.01, name
    ScoreSdePipeline.from_pretrained(tmp_path / "shard" / "pipeline")


def test_one_image_is_enough_for_training_alone(tiny, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.new("L", (28, 28), 100).save(tmp_path / "images" / "0.png")
    data = [f"data.dataset={tmp_path}/images", "model.num_class_embeds=null", "label_dropout=0", "steps=1"]
    run_here(tiny, tmp_path / "run", *data)
    for word, message in (
        (
            "scheduler.sigma_max=auto",
            "scheduler.sigma_max=auto compares images, but .* only one",
        ),
        (
            "validate_every=1",
            "validate_every=1 sets images aside, but .* has only one: set it to 0, or data.validation",
        ),
    ):
        assert train.main([str(tiny), f"output_dir={tmp_path}/other", *data, word]) == 1
        assert re.search(message, error := capsys.readouterr().err), error


def test_starts_from_the_weights_of_a_pipeline(tiny, tmp_path, capsys):
    first = run_here(tiny, tmp_path / "first", "steps=2")
    start = ["steps=1", "optimizer.lr=1e-30", f"initial_weights={first}/pipeline"]
    second = run_here(tiny, tmp_path / "second", *start)
    weights = load_file(first / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert_same_bits(weights, load_file(second / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"))

    arguments = [str(tiny), f"output_dir={tmp_path}/third", *start]
    assert train.main([*arguments, "model.block_out_channels=[16]"]) == 1
    error = capsys.readouterr().err
    assert "initial_weights" in error and "conv_in.weight: (8, 16, 3, 3), not (16, 16, 3, 3)" in error
    assert train.main([*arguments, f"initial_weights={tmp_path}/nowhere"]) == 1
    assert f"initial_weights must be a saved pipeline, but is '{tmp_path}/nowhere'" in capsys.readouterr().err


def test_starts_from_the_weights_of_a_pipeline_for_other_classes(tiny, tmp_path, capsys):
    first = run_here(tiny, tmp_path / "first", "steps=2")
    other = ["steps=1", "optimizer.lr=1e-30", "model.num_class_embeds=12", "model.augment_dim=9"]
    new = "new_layers=[class_embedding,augment_embedding]"
    files = [
        run_here(tiny, tmp_path / name, *other, *words) / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
        for name, words in (("anew", []), ("second", [f"initial_weights={first}/pipeline", new]))
    ]
    anew, second = map(load_file, files)
    weights = load_file(first / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    own = {name for name in second if name.startswith(("class_embedding.", "augment_embedding."))}
    assert len(own) == 2
    assert_same_bits(weights | {name: anew[name] for name in own}, second)

    arguments = [str(tiny), f"output_dir={tmp_path}/third", *other, f"initial_weights={first}/pipeline"]
    for words, message in (
        (["new_layers=[class_embedding]"], "augment_embedding.weight: None, not"),
        (["new_layers=[class_embed]"], "new_layers: the network has no layer 'class_embed'; it has time_proj, "),
        ([new, "initial_weights=null"], "says what initial_weights leaves out, but that is null"),
    ):
        assert train.main([*arguments, *words]) == 1
        assert message in (error := capsys.readouterr().err), error


def test_a_signal_costs_a_step_nothing_that_it_was_due_for(tiny, tmp_path, monkeypatch):
    overrides = ["steps=6", "sample_every=4", "samples.num_inference_steps=1"]
    agreed, answers = Interruption.agreed, iter([None, None, None, "SIGTERM"])
    monkeypatch.setattr(Interruption, "agreed", lambda self: next(answers))
    folder = run_here(tiny, tmp_path / "run", *overrides)
    assert not (folder / "pipeline").exists()
    monkeypatch.setattr(Interruption, "agreed", agreed)
    run_here(tiny, folder, *overrides, "resume=latest")
    grids = sorted(path.name for path in (folder / "figures").glob("samples-*.png"))
    assert grids == ["samples-00000004.png", "samples-00000006.png"]


def test_who_lost_the_folder_writes_nothing_more(tiny, tmp_path, monkeypatch, capsys):
    train_step = TrainingRun.train_step

    def step(self, *batch):
        if self.step == 3:
            monkeypatch.setattr(FolderLock, "_holds", lambda self: False)
        return train_step(self, *batch)

    monkeypatch.setattr(TrainingRun, "train_step", step)
    folder = tmp_path / "run"
    words = ["checkpoint_every=2", "checkpoints_limit=null", "power_averages.snapshot_every=1"]
    assert train.main([str(tiny), f"output_dir={folder}", *words]) == 1
    assert "writes nothing more" in capsys.readouterr().err
    assert list(metrics(folder)) == [1, 2, 3]
    assert [path.name for path in sorted((folder / "averages").iterdir())] == [f"step-0000000{k}" for k in (1, 2, 3)]


def test_divergence_stops_with_advice(tiny, tmp_path, capsys):
    arguments = [str(tiny), f"output_dir={tmp_path}/run", "optimizer.lr=1e30", "checkpoint_every=1", "log_every=4"]
    assert train.main(arguments) == 1
    error = capsys.readouterr().err
    assert "Diverged" in error and "lower optimizer.lr" in error and "Last good checkpoint" in error
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints"):
        assert all(value.isfinite().all() for value in load_file(checkpoint / "network.safetensors").values())


def test_distances_of_a_diverged_network_do_not_stop_it(tiny, tmp_path, capsys):
    """It goes on to the next look at its loss, which says what to do."""
    words = ["optimizer.lr=1e20", "log_every=4", "distance_every=2", "distance.features=fashion-mnist"]
    words += ["distance.num_images=4", "distance.num_reference=4", "distance.num_inference_steps=1"]
    words.append(f"distance.cache_dir={tmp_path}/features")
    assert train.main([str(tiny), f"output_dir={tmp_path}/run", *words]) == 1
    captured = capsys.readouterr()
    assert "Step 2: no distance." in captured.out and "lower optimizer.lr" in captured.err


def test_does_not_mix_runs(tiny, tmp_path, capsys):
    folder = run_here(tiny, tmp_path / "run", "steps=2")
    arguments = [str(tiny), f"output_dir={folder}", "steps=2"]
    assert train.main(arguments) == 1
    assert "holds a run" in capsys.readouterr().err
    assert train.main([*arguments, "resume=latest", "model.block_out_channels=[16]"]) == 1
    assert (
        "model.block_out_channels was [8] when the checkpoint was written and is [16] now" in capsys.readouterr().err
    )
    assert train.main([*arguments, "resume=latest", "scheduler.sigma_max=50"]) == 1
    assert "scheduler.sigma_max was 80.0" in capsys.readouterr().err
    shutil.rmtree(folder / "checkpoints")
    assert train.main([*arguments, "resume=latest"]) == 1 and (folder / "pipeline").exists()
    (folder / "mine.txt").write_text("kept")
    run_here(tiny, folder, "steps=1", "overwrite=true")
    assert list(metrics(folder)) == [1] and (folder / "mine.txt").exists()


def test_sigma_max_from_the_images(tiny, tmp_path, capsys):
    folder = run_here(tiny, tmp_path / "run", "steps=1", "scheduler.sigma_max=auto")
    saved = json.loads((folder / "pipeline" / "scheduler" / "scheduler_config.json").read_text())["sigma_max"]
    assert 20 < saved < 56 and f"sigma_max: {saved:.4g}" in capsys.readouterr().out  # at most 2 sqrt(28 * 28)


# ---- folders -------------------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "best"
    with written_folder(target) as folder:
        save_file({"a": torch.zeros(1)}, folder / "a")
    with pytest.raises(KeyboardInterrupt), written_folder(target) as folder:
        (folder / "b").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in target.iterdir()] == ["a"]
    with written_folder(target) as folder:
        (folder / "c").write_text("new")
    assert [path.name for path in target.iterdir()] == ["c"]
    assert not list(tmp_path.glob(".best.replaced"))
    target.rename(tmp_path / ".best.replaced")  # a crash between the two renames
    assert len(mend(tmp_path, re.compile("best"))) == 1
    assert [path.name for path in target.iterdir()] == ["c"]
