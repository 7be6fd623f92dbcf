"""The evaluation, through its command line, on a tiny network with random weights."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from warm_python import WarmPython, ranks

import evaluate
import evaluate_checkpoints
from evaluation import folder_samples, inputs
from evaluation.config import read_evaluation_config
from evaluation.distances import FeatureStatistics, frechet_distance
from evaluation.feature_networks import load_feature_network
from evaluation.residual_classifier import ResidualClassifier
from evaluation.samples import NOISE, class_labels
from images.loading import load_images
from run.draws import seed_of
from run.yaml_config import ConfigError
from sde_diffusers import (
    NCSNppUNet2DModel,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdeProbabilityFlowScheduler,
)

ROOT = Path(__file__).resolve().parents[2]
CARD = """---
license: apache-2.0
tags:
- score-sde
---

# A card

With words of its own.
"""
FEATURES = ["feature_spaces=[fashion-mnist]", "bootstrap_resamples=20", "yardsticks=[8,16]"]
LIKELIHOOD = [
    f"likelihood.{option}" for option in ("num_images=3", "passes=2", "batch_size=2", "rtol=0.1", "atol=0.1")
]


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-for-bit comparisons with other processes need the same number of threads in all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline and two feature networks, of 4 and 20 features."""
    folder = tmp_path_factory.mktemp("evaluation")
    torch.manual_seed(0)
    unet = NCSNppUNet2DModel(
        sample_size=28,
        in_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        attention_resolutions=(),
        patch_size=4,
        fir=False,
        scale_by_sigma=False,
        fourier_scale=1.0,
        image_range=(-1.0, 1.0),
        init_scale=1.0,
        preconditioning="edm",
        sigma_data=0.7,
        num_class_embeds=10,
    )
    scheduler = ScoreSdeExponentialScheduler(
        sde="ve",
        sigma_min=0.002,
        sigma_max=80.0,
        prediction_type="sample",
        time_input="sigma",
        image_range=(-1.0, 1.0),
        eta=1.0,
    )
    ScoreSdePipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "pipeline")
    (folder / "pipeline" / "README.md").write_text(CARD)
    curve = [{"step": step, "validation_loss": 1 / step} for step in (1, 2, 3)]  # as train.py leaves it
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    for width in (4, 20):
        path = folder / f"features-{width}"
        path.mkdir()
        save_file(ResidualClassifier((4, 6, width)).state_dict(), path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({"widths": [4, 6, width], "num_classes": 10, "resolution": 28}))
    return folder


def arguments(folder, output, *more):
    return [
        str(folder / "pipeline"),
        f"output_dir={output}",
        f"cache_dir={folder / 'cache'}",
        f"feature_weights.fashion-mnist={folder / 'features-4'}",
        f"data.dataset={ROOT / 'data' / 'fashion_mnist'}",
        "data.name=zalando-datasets/fashion_mnist",
        "data.max_images=100",
        "samples.num_images=16",
        "samples.batch_size=6",
        "samples.num_inference_steps=3",
        "neighbors.num_images=0",
        *more,
    ]


def run(folder, output, *more):
    assert evaluate.main(arguments(folder, output, *more)) == 0
    return json.loads((output / "results.json").read_text())["results"]


def drawn(output):
    shards = sorted((output / "shards" / "samples").glob("*.safetensors"))
    return torch.cat([load_file(shard)["images"] for shard in shards])


@pytest.fixture(scope="module")
def complete(folder, tmp_path_factory):
    """An evaluation with everything, and its records."""
    output = tmp_path_factory.mktemp("complete")
    more = [*FEATURES, *LIKELIHOOD, "neighbors.num_images=10", "save_images=true", "update_card=true"]
    return output, run(folder, output, *more)


# ---- results -------------------------------------------------------------------------------------------------------


def test_every_number_says_what_it_depends_on(complete):
    _, records = complete
    metrics = {record["metric"] for record in records}
    assert metrics == {
        *("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"),
        *("bits_per_dim", "images_per_second", "nearer_than_1_percent_of_test_images"),
    }
    for record in records:
        assert np.isfinite(record["value"]) and record["num_images"] > 0 and record["resolution"] == "28x28x1"
        assert record["dataset"] == "zalando-datasets/fashion_mnist" and record["split"] in ("train", "test")
        assert isinstance(record["seed"], int)
        if "feature_dimension" in record:
            assert record["feature_space"].startswith("fashion-mnist-features-") and record["feature_dimension"] == 4
        if record["images"] == "samples":
            assert record["sampler"]["class_name"] == "ScoreSdeExponentialScheduler"
            assert record["sampler"]["eta"] == 1.0 and record["sampler"]["num_inference_steps"] == record["nfe"] == 3
            assert record["precision"] == "float32"


def test_distances_are_those_of_the_saved_images(complete, folder):
    output, records = complete
    files = sorted((output / "samples").iterdir())
    assert [path.name for path in files] == [f"{k:06d}.png" for k in range(16)]
    images = torch.stack([torch.from_numpy(np.array(Image.open(path)))[None] for path in files])
    torch.testing.assert_close(images, drawn(output)[:16], rtol=0, atol=0)

    network = load_feature_network("fashion-mnist", folder / "features-4")
    reference = load_images(str(ROOT / "data" / "fashion_mnist"), max_images=100).images
    statistics = [FeatureStatistics.from_features(network(x)) for x in (images, reference)]
    by_images = {r["images"]: r for r in records if r["metric"] == "frechet_distance"}
    assert list(by_images) == ["samples", "test images + noise 8/255", "test images + noise 16/255"]
    assert by_images["samples"]["value"] == pytest.approx(frechet_distance(*statistics), rel=1e-4)
    assert "fewer than ten" in by_images["samples"]["mark"] and by_images["samples"]["num_reference"] == 100
    low, high = by_images["samples"]["interval_95"]
    assert low <= by_images["samples"]["value"] <= high


def test_page_shows_the_samples(complete):
    output, _ = complete
    with Image.open(output / "page.png") as page:
        pixels = np.asarray(page.convert("L"))
    assert page.width == 1400 and page.height > 800
    assert (pixels < 250).mean() > 0.05


def test_bits_per_dim_are_the_pipelines(complete, folder):
    _, records = complete
    (record,) = [r for r in records if r["metric"] == "bits_per_dim"]
    test = load_images(str(ROOT / "data" / "fashion_mnist"), "test", max_images=100)
    chosen = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:3]
    pipe = ScoreSdePipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed_of(0, k)) for k in chosen.tolist()]
    output = pipe.bits_per_dim(test.images[chosen], generator=generators, dequantize=2, rtol=1e-3, atol=1e-3)
    assert record["value"] == pytest.approx(output.bits_per_dim.mean().item(), abs=0.05)  # of the rough tolerance
    assert record["standard_error"]["total"] == pytest.approx(output.standard_error["total"], rel=0.1)
    assert record["standard_error"]["probe"] is None  # one probe cannot tell
    assert (record["num_images"], record["passes"], record["split"]) == (3, 2, "test")


def test_bound_of_the_sde_is_the_pipelines(folder, tmp_path):
    more = ["likelihood.model=sde", "likelihood.draws=4", "likelihood.passes=2", "likelihood.num_images=3"]
    (record,) = run(folder, tmp_path, "samples.num_images=0", *more)
    test = load_images(str(ROOT / "data" / "fashion_mnist"), "test", max_images=100)
    chosen = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:3]
    pipe = ScoreSdePipeline.from_pretrained(folder / "pipeline")
    generators = [torch.Generator().manual_seed(seed_of(0, k)) for k in chosen.tolist()]
    output = pipe.variational_bound(test.images[chosen], generators, draws=4, passes=2)
    assert record["value"] == pytest.approx(output.bits_per_dim.mean().item(), rel=1e-6)
    assert record["dequantization"] == "none (bound of the SDE)" and "rtol" not in record
    assert record["standard_error"] == pytest.approx(output.standard_error, rel=1e-5)


def test_frechet_distance_of_too_few_images_is_refused(folder, tmp_path):
    weights = f"feature_weights.fashion-mnist={folder / 'features-20'}"
    records = run(folder, tmp_path, "feature_spaces=[fashion-mnist]", "metrics=[frechet_distance]", weights)
    (record,) = [r for r in records if r["metric"] == "frechet_distance"]
    assert record["value"] is None and "at least 21 images, got 16" in record["refused"]


def test_frechet_distance_from_shipped_statistics(folder, tmp_path, monkeypatch):
    network = load_feature_network("fashion-mnist", folder / "features-4")
    images = load_images(str(ROOT / "data" / "fashion_mnist"), max_images=300).images
    statistics = FeatureStatistics.from_features(network(images))
    path = tmp_path / "statistics.safetensors"
    statistics.save(path, feature_space=network.name, dataset="all of them", split="train", resolution=28)
    for module in (evaluate, inputs):
        monkeypatch.setattr(module, "shipped_statistics_path", lambda network: path)
    more = ["feature_spaces=[fashion-mnist]", "frechet_reference=shipped", "metrics=[frechet_distance]"]
    (record, _) = run(folder, tmp_path, *more)
    assert (record["dataset"], record["num_reference"]) == ("all of them", 300)
    own = FeatureStatistics.from_features(network(drawn(tmp_path)[:16]))
    assert record["value"] == pytest.approx(frechet_distance(own, statistics), rel=1e-4)


# ---- the card ------------------------------------------------------------------------------------------------------


def test_card_gets_the_numbers_and_keeps_the_rest(complete, folder, tmp_path):
    _, records = complete
    path = folder / "pipeline" / "README.md"
    card = ModelCard(path.read_text())
    assert card.text.strip() == CARD.split("---")[2].strip()
    assert card.data.license == "apache-2.0" and card.data.tags == ["score-sde"]
    results = {result.metric_type: result for result in card.data.eval_results}
    values = {r["metric"]: r["value"] for r in records if r["images"] in ("samples", "test images")}
    assert {metric: result.metric_value for metric, result in results.items()} == values
    assert results["frechet_distance"].dataset_type == "zalando-datasets/fashion_mnist"
    assert results["frechet_distance"].metric_args["num_images"] == 16
    assert results["bits_per_dim"].dataset_split == "test"

    # Again: no number twice; another setting: beside it; of other weights: out of date.
    stale = path.read_text().replace(f"network: {results['recall'].metric_args['network']}", "network: 0123")
    more = [*FEATURES, "metrics=[frechet_distance]", "update_card=true"]
    run(folder, tmp_path / "same", *more)
    assert len(ModelCard(path.read_text()).data.eval_results) == len(results)
    run(folder, tmp_path / "other", *more, "samples.seed=1")
    assert len(ModelCard(path.read_text()).data.eval_results) == len(results) + 2
    path.write_text(stale)
    run(folder, tmp_path / "same", *more)
    assert {r.metric_type for r in ModelCard(path.read_text()).data.eval_results} == {
        "frechet_distance",
        "images_per_second",
    }


# ---- samples -------------------------------------------------------------------------------------------------------


def test_interrupted_evaluation_goes_on(complete, folder, tmp_path, monkeypatch, capsys):
    class Interrupted:
        def __init__(self, pipe):
            self.pipe, self.calls = pipe, 0

        def __getattr__(self, name):
            return getattr(self.pipe, name)

        def __call__(self, *args, **kwargs):
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return self.pipe(*args, **kwargs)

    load = evaluate.load_pipeline
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "load_pipeline", lambda *args: Interrupted(load(*args)))
        assert evaluate.main(arguments(folder, tmp_path)) == 130
    assert "goes on" in capsys.readouterr().err
    (shard,) = (tmp_path / "shards" / "samples").glob("*.safetensors")
    written = shard.stat().st_mtime_ns
    run(folder, tmp_path)
    assert shard.stat().st_mtime_ns == written
    torch.testing.assert_close(drawn(tmp_path), drawn(complete[0]), rtol=0, atol=0)


def test_more_images_follow_those_that_are_there(complete, folder, tmp_path, monkeypatch):
    def threads(number, *more):
        """Threads that the record of the speed names, where this evaluation has the given number."""
        monkeypatch.setattr(torch, "get_num_threads", lambda: number)
        records = run(folder, tmp_path, *more)
        return next(record["threads"] for record in records if record["metric"] == "images_per_second")

    assert threads(7, "samples.num_images=7") == 7
    assert len(drawn(tmp_path)) == 12  # whole batches
    assert threads(3) == 3
    assert threads(5) == 3  # nothing was drawn with 5
    torch.testing.assert_close(drawn(tmp_path), drawn(complete[0]), rtol=0, atol=0)


def test_two_processes_draw_the_images_of_one(complete, folder, tmp_path):
    command = [ROOT / "training" / "evaluate.py", *arguments(folder, tmp_path, *FEATURES, *LIKELIHOOD)]
    for process in [WarmPython(command, {**os.environ, **rank, "OMP_NUM_THREADS": "1"}) for rank in ranks(2)]:
        output = process.communicate(timeout=600)
        assert process.returncode == 0, output
    torch.testing.assert_close(drawn(tmp_path), drawn(complete[0]), rtol=0, atol=0)
    records = json.loads((tmp_path / "results.json").read_text())["results"]
    expected = {(r["images"], r["metric"]): r["value"] for r in complete[1] if "feature_space" in r}
    assert {(r["images"], r["metric"]): r["value"] for r in records if "feature_space" in r} == pytest.approx(expected)
    assert next(r["processes"] for r in records if r["metric"] == "images_per_second") == 2
    # Three test images in batches of two: no image counts twice, and there is one number.
    bits, of_one = ([r for r in found if r["metric"] == "bits_per_dim"] for found in (records, complete[1]))
    assert bits == of_one and bits[0]["num_images"] == 3


def test_samples_of_another_configuration_are_refused(folder, tmp_path, capsys):
    run(folder, tmp_path)
    for change, message in (
        ("samples.seed=1", "seed was 0 and is 1 now"),
        ("scheduler.eta=0.5", "sampler was"),
        ("samples.batch_size=5", "shard_size was 6 and is 5 now"),
    ):
        assert evaluate.main(arguments(folder, tmp_path, change)) == 1
        assert message in capsys.readouterr().err


def test_curve_over_the_checkpoints_of_a_run(complete, folder, tmp_path, capsys):
    training, output = tmp_path / "run", tmp_path / "curve"
    ScoreSdePipeline.from_pretrained(folder / "pipeline").save_pretrained(training / "pipeline", max_shard_size="20KB")
    assert len([*(training / "pipeline" / "unet").glob("*.safetensors")]) > 1  # which are not the checkpoints' weights
    weights = load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    for step, factor in ((5, 0.9), (10, 1.0)):
        checkpoint = training / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        save_file({name: factor * value for name, value in weights.items()}, checkpoint / "ema.safetensors")
        counted = {"images_seen": 300} if step == 10 else {}  # in smaller batches at the end; older ones do not tell
        state = dict(step=step, best_loss=1.0, ema_step=step, scaler=None, config={"batch_size": 32}) | counted
        (checkpoint / "state.json").write_text(json.dumps(state))
    options = [str(training), *arguments(folder, output, "feature_spaces=[fashion-mnist]", *LIKELIHOOD)[1:]]
    assert evaluate_checkpoints.main(options) == 0
    early, late = json.loads((output / "curve.json").read_text())
    assert [early["images_seen"], late["images_seen"]] == [160, 300]
    values = {record["metric"]: record["value"] for record in complete[1] if record["images"] != "samples"}
    assert late["bits_per_dim"]["value"] == pytest.approx(values["bits_per_dim"], rel=1e-6)
    assert early["bits_per_dim"]["value"] != pytest.approx(values["bits_per_dim"], rel=1e-3)
    assert early["frechet_distance"]["value"] != late["frechet_distance"]["value"]
    assert np.asarray(Image.open(output / "curve.png")).std() > 0
    nothing = [option for option in options if not option.startswith(("feature_spaces", "likelihood"))]
    assert evaluate_checkpoints.main([*nothing, f"output_dir={tmp_path}/none"]) == 1
    assert "the curve needs likelihood.num_images" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert evaluate_checkpoints.main([str(folder), *options[1:]]) == 1
    assert "is no finished run of train.py" in capsys.readouterr().err


def test_any_sampler(complete, folder, tmp_path):
    more = ["scheduler.class_name=ScoreSdeProbabilityFlowScheduler", "scheduler.method=heun", "samples.batch_size=16"]
    (record,) = run(folder, tmp_path, *more, "samples.guidance_scale=2")
    assert record["nfe"] == 10  # two steps of Heun's method and one of Euler's, each guided
    pipe = ScoreSdePipeline.from_pretrained(folder / "pipeline")
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.scheduler = ScoreSdeProbabilityFlowScheduler.from_config(pipe.scheduler.config)
    generators = [torch.Generator().manual_seed(seed_of(0, NOISE, k)) for k in range(16)]
    labels = [k % 10 for k in range(16)]
    images = pipe(16, 3, labels, guidance_scale=2.0, generator=generators, output_type="pt").images
    torch.testing.assert_close(drawn(tmp_path), (images * 255).round().byte(), rtol=0, atol=0)


def test_class_labels():
    assert class_labels("none", range(3), None, None, 0) is None
    assert class_labels("balanced", range(8, 12), 10, None, 0).tolist() == [8, 9, 0, 1]
    labels = torch.tensor([0, 0, 0, 7])
    drawn_labels = class_labels("random", range(1000), 10, labels, 0)
    assert set(drawn_labels.tolist()) == {0, 7}
    assert (drawn_labels == 7).float().mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1000) ** 0.5)
    torch.testing.assert_close(class_labels("random", range(10, 20), 10, labels, 0), drawn_labels[10:20])


# ---- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ("sample.num_images=1", "Did you mean samples"),
        ("samples.num_image=1", "samples.num_image is not a key. Did you mean num_images"),
        ("samples.seed=-1", "samples.seed must be an integer from 0 to .* but is -1"),
        ("metrics=[fid]", "metrics must be a list of frechet_distance"),
        ("feature_spaces=[vgg]", "feature_spaces must be"),
        ("likelihood.eps=2", "likelihood.eps must be in"),
        ("neighbors.space=dinov2", "neighbors.space must be pixels or one of feature_spaces"),
        ("frechet_reference=shipped", "frechet_reference=shipped is for"),
        ("data.split=validation data.test_split=test", "data.split=validation is short for data.test_split"),
        (
            "feature_spaces=[inception] feature_weights.dinov2=somewhere",
            "feature_weights.dinov2 is for a feature space that is none of feature_spaces",
        ),
        ("yardsticks=[8]", "yardsticks are for the distances in feature_spaces"),
        ("samples.num_images=0", "leave nothing to evaluate"),
        ("--save_images", "must have the form key=value"),
    ],
)
def test_refused_configurations(change, message):
    with pytest.raises(ConfigError, match=message):
        read_evaluation_config(["pipeline", "output_dir=x", "data.dataset=fashion_mnist", *change.split()])


@pytest.mark.parametrize(
    "change, message",
    [
        ("scheduler.class_name=DDPMScheduler", "scheduler.class_name must be one of"),
        ("scheduler.solver_orders=2", "scheduler.solver_orders is not a key. Did you mean solver_order"),
        ("scheduler.solver_order=5", "scheduler: `solver_order`"),
        ("samples.guidance_scale=2 samples.classes=none", "samples.guidance_scale=2.0 needs classes"),
        ("feature_spaces=[fashion-mnist] feature_weights.fashion-mnist=missing", "no config.json in missing"),
        ("data.reference_split=all", "split 'all' does not exist"),
        ("likelihood.num_images=1 scheduler.clip_denoised=true", "likelihood: The scheduler bounds"),
        ("likelihood.num_images=1 likelihood.rtol=1e-14", "likelihood: `rtol` must be"),
    ],
)
def test_refused_before_anything_is_drawn(folder, tmp_path, capsys, change, message):
    assert evaluate.main(arguments(folder, tmp_path, *change.split())) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["samples.classes=random", "likelihood.num_images=1 likelihood.given_class=true"])
def test_missing_labels_are_noticed_before_anything_is_drawn(folder, tmp_path, monkeypatch, capsys, change):
    load = inputs.load_images
    for labels, message in ((None, "needs labels"), (torch.tensor([3, 10]), "has the label 10")):

        def changed(*args, labels=labels, **options):
            return dataclasses.replace(load(*args, **options), labels=labels)

        monkeypatch.setattr(inputs, "load_images", changed)
        assert evaluate.main(arguments(folder, tmp_path, *change.split())) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ready_configurations_are_valid():
    files = sorted((ROOT / "training" / "evaluations").glob("*.yaml"))
    assert files
    for file in files:
        read_evaluation_config(["pipeline", str(file), "output_dir=x"])


def test_update_of_a_missing_card_is_refused(tmp_path, capsys):
    more = [f"output_dir={tmp_path}", "data.dataset=fashion_mnist", "update_card=true"]
    assert evaluate.main([str(tmp_path), *more]) == 1
    assert "there is no" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("---\nlicense: mit: or not\n---\n")
    assert evaluate.main([str(tmp_path), *more]) == 1
    assert "README.md cannot be read" in capsys.readouterr().err


def test_what_values_mean_is_told_of_both_folders(tmp_path):
    """A folder beside itself is a copy, whichever value is white; samples of 8 bits stay what they are."""
    rng = np.random.default_rng(0)
    for name, dtype, top in (("deep", np.uint16, 4096), ("shallow", np.uint8, 256)):
        (tmp_path / name).mkdir()
        for k in range(12):
            Image.fromarray(rng.integers(0, top, (8, 8)).astype(dtype)).save(tmp_path / name / f"{k}.png")
    for white in ([], ["data.white_level=4095"]):
        output = tmp_path / f"out{len(white)}"
        options = [f"output_dir={output}", f"cache_dir={tmp_path}/cache", "neighbors.num_images=12", *white]
        assert evaluate.main([str(tmp_path / "deep"), f"data.dataset={tmp_path}/deep", *options]) == 0
        (record,) = [r for r in json.loads((output / "results.json").read_text())["results"] if "exact_copies" in r]
        assert record["exact_copies"] == 12
    options = [f"output_dir={tmp_path}/mixed", f"cache_dir={tmp_path}/cache", "neighbors.num_images=12"]
    arguments = [str(tmp_path / "shallow"), f"data.dataset={tmp_path}/deep", *options, "data.white_level=4095"]
    assert evaluate.main(arguments) == 0


def test_a_constant_image_has_the_range_that_is_told(tmp_path):
    """Alone it has none that could be measured."""
    (tmp_path / "floats").mkdir()
    for k, values in enumerate((np.zeros((8, 8)), np.linspace(0, 0.5, 64).reshape(8, 8))):
        np.save(tmp_path / "floats" / f"{k}.npy", values.astype(np.float32))
    config = read_evaluation_config(
        [str(tmp_path / "floats"), "output_dir=x", "data.dataset=y", "data.value_range=[0,1]"]
    )
    data = folder_samples.load_samples(config)
    assert len(data) == 2 and (data.pixels.low, data.pixels.high) == (0, 1)


def test_classes_are_the_networks_by_their_names(folder, tmp_path, monkeypatch, capsys):
    """The data may number them otherwise."""
    pipe = ScoreSdePipeline.from_pretrained(folder / "pipeline")
    pipe.unet.register_to_config(class_names=["bag", "boot", "coat"])
    for split in ("train", "test"):
        for name, value in (("boot", 50), ("coat", 200)):
            (tmp_path / "clothes" / split / name).mkdir(parents=True)
            for k in range(2):
                picture = Image.new("L", (28, 28), value + k)
                picture.save(tmp_path / "clothes" / split / name / f"{k}.png")
    data = load_images(str(tmp_path / "clothes"), "test")
    assert data.labels.tolist() == [0, 0, 1, 1]
    changed = inputs._with_classes_of(pipe, data, "likelihood.given_class=true")
    assert changed.labels.tolist() == [1, 1, 2, 2] and changed.class_names == ["bag", "boot", "coat"]
    pipe.unet.register_to_config(class_names=["bag", "boot"])
    with pytest.raises(ConfigError, match="has the classes coat, but the network knows bag, boot"):
        inputs._with_classes_of(pipe, data, "likelihood.given_class=true")


def test_a_network_that_always_had_a_class_is_not_asked_without(folder, tmp_path, capsys):
    shutil.copytree(folder / "pipeline", tmp_path / "pipeline")
    path = tmp_path / "pipeline" / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "label_dropout": 0.0}))
    for change in ("samples.classes=none", "samples.guidance_scale=2", "likelihood.num_images=1"):
        words = arguments(tmp_path, tmp_path / "e", f"feature_weights.fashion-mnist={folder / 'features-4'}", change)
        assert evaluate.main(words) == 1
        assert "asks the network without a class" in capsys.readouterr().err
    words = arguments(tmp_path, tmp_path / "e", "likelihood.num_images=1", "likelihood.given_class=true", *LIKELIHOOD)
    assert evaluate.main(words) == 0


def test_likelihoods_of_other_labels_are_not_gone_on_with(folder, tmp_path, monkeypatch, capsys):
    more = [*LIKELIHOOD, "likelihood.given_class=true", "samples.num_images=0"]
    assert evaluate.main(arguments(folder, tmp_path, *more)) == 0
    load = inputs.load_images

    def changed(*args, **options):
        data = load(*args, **options)
        return dataclasses.replace(data, labels=(data.labels + 1) % 10)

    monkeypatch.setattr(inputs, "load_images", changed)
    assert evaluate.main(arguments(folder, tmp_path, *more)) == 1
    assert "test_labels was" in capsys.readouterr().err
    kept = json.loads((tmp_path / "shards" / "likelihood" / "description.json").read_text())
    assert kept["pixels"] == ["uint8", 0, 255] and kept["image_range"] == [-1, 1]


def test_features_have_the_name_of_their_resolution(folder, tmp_path):
    shutil.copytree(folder / "features-4", tmp_path / "larger")
    path = tmp_path / "larger" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resolution": 56}))
    names = {load_feature_network("fashion-mnist", path).name for path in (folder / "features-4", tmp_path / "larger")}
    assert len(names) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        (["feature_spaces=[fashion-mnist,cifar10]"], "the curve is of one of the feature_spaces"),
        (["samples.num_images=4"], "is too few for a Frechet distance in the 4 features"),
    ],
)
def test_a_curve_that_could_not_be_drawn_is_refused(folder, tmp_path, capsys, change, message):
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
    shutil.copytree(folder / "pipeline", tmp_path / "run" / "pipeline")
    words = arguments(folder, tmp_path / "e", "feature_spaces=[fashion-mnist]", *change)
    assert evaluate_checkpoints.main([str(tmp_path / "run"), *words[1:]]) == 1
    assert message in capsys.readouterr().err
