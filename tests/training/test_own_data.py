"""From files as people have them to samples and evaluations: what values mean, what was held out, what is measured."""

import json
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import show_data
import train
from run.record import read_record
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.images import PixelFormat

SMALL = """
output_dir: ???
data: {}
model: {block_out_channels: [8, 8], layers_per_block: 1, attention_resolutions: [], fir: false}
scheduler: {sde: ve, sigma_max: 10.0}
steps: 2
batch_size: 4
mixed_precision: "no"
validate_every: 0
sample_every: 0
log_every: 1
samples: {rows: 1, columns: 2, num_inference_steps: 2}
"""


@pytest.fixture
def run(tmp_path):
    """Train with these words; what it prints."""
    (tmp_path / "small.yaml").write_text(SMALL)

    def start(*words):
        assert train.main([str(tmp_path / "small.yaml"), *map(str, words)]) == 0

    return start


def noise(folder, count, shape=(8, 8), top=255, dtype=np.uint8, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for k in range(count):
        Image.fromarray(generator.integers(0, top + 1, shape).astype(dtype)).save(folder / f"{seed}_{k:02}.png")
    return folder


def test_sixteen_bits_from_file_to_file(tmp_path, run):
    (tmp_path / "ramps").mkdir()
    for k in range(8):
        ramp = np.linspace(k, 65535 - 100 * k, 64).round().astype(np.uint16).reshape(8, 8)
        Image.fromarray(ramp).save(tmp_path / "ramps" / f"{k}.png")
    run(f"data.dataset={tmp_path}/ramps", f"output_dir={tmp_path}/run", "steps=10", "sample_every=10")
    pipe = ScoreSdePipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipe.pixel_format == PixelFormat.of("uint16")
    for k, image in enumerate(pipe(4, 3, generator=torch.Generator().manual_seed(0)).images):
        image.save(tmp_path / f"{k}.png")
    values = np.stack([np.asarray(Image.open(tmp_path / f"{k}.png")) for k in range(4)])
    inside = values[(values > 0) & (values < 65535)]
    assert values.dtype == np.uint16 and len(inside) and (inside % 257 != 0).mean() > 0.9


def test_five_bands_of_floats(tmp_path, run, capsys):
    (tmp_path / "bands").mkdir()
    for k in range(6):
        np.save(tmp_path / "bands" / f"{k}.npy", np.random.default_rng(k).normal(size=(5, 8, 12)).astype(np.float32))
    run(f"data.dataset={tmp_path}/bands", f"output_dir={tmp_path}/run", "sample_every=2")
    assert "6 used of 6 found, 5 x 8 x 12, float32 from" in capsys.readouterr().out
    pipe = ScoreSdePipeline.from_pretrained(tmp_path / "run" / "pipeline")
    low, high = pipe.pixel_format.low, pipe.pixel_format.high
    images = pipe(2, 2, output_type="np", data_units=True).images
    assert images.shape == (2, 8, 12, 5) and images.min() >= low - 1e-5 and images.max() <= high + 1e-5 and low < -2
    unit = torch.rand(1, 5, 8, 12)
    assert pipe.bits_per_dim(unit, rtol=0.1, atol=0.1).bits_per_dim.isfinite().all()
    with pytest.raises(ValueError, match="'pil' cannot hold float32 images of 5 channels"):
        pipe(1, 2)


def test_a_resumed_run_keeps_what_it_measured(tmp_path, run, capsys):
    noise(tmp_path / "data", 20, top=60)
    words = (
        f"data.dataset={tmp_path}/data",
        f"output_dir={tmp_path}/run",
        "scheduler.sigma_max=auto",
        "validate_every=2",
    )
    edm = ("model.image_range=[-1,1]", "scheduler.image_range=[-1,1]", "scheduler.time_input=sigma")
    edm += ("model.preconditioning=edm", "model.scale_by_sigma=false", "scheduler.prediction_type=sample")
    words += (*edm, "model.sigma_data=auto", "objective.objective=edm", "objective.sigma_data=${model.sigma_data}")
    run(*words)
    first = read_record(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "pipeline" / "unet" / "config.json").read_text())
    scheduler = json.loads((tmp_path / "run" / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    assert 0 < config["sigma_data"] < 0.2 and first.num_images == 20
    noise(tmp_path / "data", 5, top=255, seed=1)
    capsys.readouterr()
    run(*words, "steps=4", "resume=latest")
    said = capsys.readouterr().out
    assert "As measured when the run began (20 images then, 25 now): values from 0 to 255" in said
    assert f"scheduler.sigma_max: {scheduler['sigma_max']:.4g}, as measured when the run began" in said
    assert read_record(tmp_path / "run") == first
    for part, before in (("unet/config.json", config), ("scheduler/scheduler_config.json", scheduler)):
        assert json.loads((tmp_path / "run" / "pipeline" / part).read_text()) == before


def of_classes(folder, names):
    for seed, name in enumerate(names):
        noise(folder / name, 3, seed=seed)
    return f"data.dataset={folder}"


def refused(tmp_path, capsys, *words):
    assert train.main([str(tmp_path / "small.yaml"), *map(str, words)]) == 1
    return capsys.readouterr().err


def test_a_resumed_run_keeps_its_classes(tmp_path, run, capsys):
    words = of_classes(tmp_path / "data", "123"), f"output_dir={tmp_path}/run", "model.num_class_embeds=3"
    run(*words)
    (tmp_path / "data" / "1").rename(tmp_path / "data" / "4")
    error = refused(tmp_path, capsys, *words, "resume=latest", "steps=5")
    assert "the classes were ['1', '2', '3'] when the run began, but those of" in error
    assert "are ['2', '3', '4'] now" in error and "Traceback" not in error
    words = (words[0], f"output_dir={tmp_path}/unconditional")
    run(*words)
    (tmp_path / "data" / "4").rename(tmp_path / "data" / "5")
    run(*words, "resume=latest", "steps=5")  # it has no use for classes


@pytest.mark.parametrize("output_dir, data_dir", [("data", None), ("data/runs/one", None), ("link/run", "images")])
def test_a_run_within_its_data_is_refused(tmp_path, run, capsys, output_dir, data_dir):
    noise(tmp_path / "data" / "images", 8)
    (tmp_path / "link").symlink_to(tmp_path / "data" / "images")
    before = sorted(tmp_path.rglob("*"))
    words = [f"data.dataset={tmp_path}/data"] + ([f"data.data_dir={data_dir}"] if data_dir else [])
    (tmp_path / "small.yaml").write_text(SMALL)
    error = refused(tmp_path, capsys, *words, f"output_dir={tmp_path}/{output_dir}", "resume=latest")
    assert f"output_dir={tmp_path}/{output_dir} lies in data.dataset={tmp_path}/data, " in error
    assert sorted(tmp_path.rglob("*")) == before
    run(*words[:1], "data.data_dir=images", f"output_dir={tmp_path}/data/run")  # beside what is read


@pytest.mark.parametrize("last", ["values", "size"])
def test_an_image_of_a_stream_that_does_not_fit_ends_the_run_in_one_line(tmp_path, run, capsys, last):
    noise(tmp_path / "data", 12)
    noise(tmp_path / "data", 1, **{"values": {"dtype": np.uint16}, "size": {"shape": (9, 9)}}[last], seed=1)
    words = [f"data.dataset={tmp_path}/data", f"output_dir={tmp_path}/run", "data.streaming=true", "steps=20"]
    error = refused(tmp_path, capsys, *words).splitlines()
    said = {"values": "holds uint16 where the images before it hold uint8", "size": "has shape (1, 9, 9) where"}
    assert error[-1].startswith("StreamError: 1_00.png") and said[last] in error[-1]
    assert not any("Traceback" in line for line in error)


def test_initial_weights_of_other_classes(tmp_path, run, capsys):
    run(of_classes(tmp_path / "first", "abc"), f"output_dir={tmp_path}/run", "model.num_class_embeds=3")
    words = [f"output_dir={tmp_path}/second", "model.num_class_embeds=3", f"initial_weights={tmp_path}/run/pipeline"]
    config = tmp_path / "run" / "pipeline" / "unet" / "config.json"
    content = json.loads(config.read_text())
    assert content["class_names"] == ["a", "b", "c"]
    capsys.readouterr()
    run(of_classes(tmp_path / "other", "abd"), *words)
    assert "are ['a', 'b', 'c'], and here ['a', 'b', 'd']; new_layers=" in capsys.readouterr().out
    run(f"data.dataset={tmp_path}/first", *words, "overwrite=true")
    assert "the classes of initial_weights" not in capsys.readouterr().out
    config.write_text(json.dumps({**content, "class_names": ["b", "a", "c"]}))
    words += [f"data.dataset={tmp_path}/first", "overwrite=true"]
    error = refused(tmp_path, capsys, *words)
    assert "are ['b', 'a', 'c'], but here their order is ['a', 'b', 'c']" in error and "Traceback" not in error
    run(*words, "new_layers=[class_embedding]")


def test_a_run_is_evaluated_on_what_it_held_out(tmp_path, run, capsys):
    noise(tmp_path / "data", 40)
    run(f"data.dataset={tmp_path}/data", f"output_dir={tmp_path}/run", "validate_every=2")
    held_out = read_record(tmp_path / "run").held_out
    assert len(held_out) == 4
    common = [f"data.dataset={tmp_path}/data", "samples.num_images=6", "samples.num_inference_steps=2"]
    words = [str(tmp_path / "run" / "pipeline"), *common, f"output_dir={tmp_path}/evaluation"]
    assert evaluate.main([*words, "data.split=held_out"]) == 0
    (record,) = (r for r in results(tmp_path / "evaluation") if r["metric"].startswith("nearer"))
    assert record["num_test_images"] == 4 and record["num_reference"] == 36 and record["exact_copies"] == 0
    assert evaluate.main([*words, "data.test_split=train"]) == 1
    assert "data.test_split and data.reference_split are both 'train'" in capsys.readouterr().err
    shown = [f"{tmp_path}/data", "data.split=held_out", "--json", str(tmp_path / "shown.json")]
    assert show_data.main(shown) == 1 and "name its folder by --run" in capsys.readouterr().err
    assert show_data.main([*shown, "--run", f"{tmp_path}/run"]) == 0
    numbers = json.loads((tmp_path / "shown.json").read_text())
    assert numbers["splits"] == {"train": 36, "held_out": 4} and numbers["images"] == 40


def test_a_folder_against_a_folder(tmp_path, capsys):
    own = noise(tmp_path / "own", 12)
    samples = noise(tmp_path / "samples", 6, seed=1)
    for k in range(3):  # copies
        (samples / f"copy{k}.png").write_bytes((own / f"0_{k:02}.png").read_bytes())
    assert evaluate.main([str(samples), str(own), f"output_dir={tmp_path}/evaluation"]) == 0
    (record,) = results(tmp_path / "evaluation")
    assert record["metric"] == "exact_copies" and record["value"] == pytest.approx(3 / 9)
    assert record["num_images"] == 9 and record["num_reference"] == 12
    assert evaluate.main([str(samples), str(own), f"output_dir={tmp_path}/e", "likelihood.num_images=2"]) == 1
    assert "need a pipeline" in capsys.readouterr().err


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def test_show_data(tmp_path, capsys):
    for seed, folder in enumerate(("train/dog", "test/cat", "train/cat")):
        noise(tmp_path / "data" / folder, 5, seed=seed)
    (tmp_path / "data" / "notes.txt").write_text("")
    (tmp_path / "data" / "test" / "cat" / "again.png").write_bytes(
        (tmp_path / "data" / "train" / "cat" / "2_00.png").read_bytes()
    )
    words = [str(tmp_path / "data"), "--json", str(tmp_path / "o.json"), "--picture", str(tmp_path / "o.png")]
    assert show_data.main(words) == 0
    numbers = json.loads((tmp_path / "o.json").read_text())
    assert sorted(numbers) == ["classes", "dtype", "files", "images", "range", "shape", "skipped", "splits"]
    assert numbers["files"] == numbers["images"] == 16 and numbers["splits"] == {"train": 10, "test": 6}
    assert numbers["classes"] == {"cat": 5, "dog": 5} and numbers["shape"] == [1, 8, 8] and numbers["dtype"] == "uint8"
    assert numbers["skipped"] == [{"name": "notes.txt", "reason": "no image by its name"}]
    printed = capsys.readouterr().out
    assert "Duplicates: 1 images are in train and in test, such as train/cat/2_00.png = test/cat/again.png" in printed
    assert "scheduler.image_range=[-1, 1]: model.sigma_data=" in printed
    with Image.open(tmp_path / "o.png") as sheet:
        assert sheet.width > 300
    noise(tmp_path / "data" / "train" / "dog", 1, shape=(9, 9), seed=9)
    assert show_data.main(words) == 1
    captured = capsys.readouterr()
    assert "Split train would be refused" in captured.err and "give image_size" in captured.err
    assert show_data.main([*words, "data.image_size=[4,6]"]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["shape"] == [1, 4, 6]


def test_nothing_is_suggested_for_images_that_are_the_same(tmp_path, run, capsys):
    for k in range(40):
        noise(tmp_path / "data" / str(k), 1, seed=0)
    words = [f"data.dataset={tmp_path}/data", f"output_dir={tmp_path}/run", "scheduler.sigma_max=auto"]
    assert show_data.main([f"{tmp_path}/data"]) == 0
    printed = capsys.readouterr().out
    assert "Suggested: nothing for model.sigma_data and scheduler.sigma_max, since all images are the same" in printed
    assert "sigma_max=" not in printed
    assert "scheduler.sigma_max=auto compares images, but all are the same" in refused(tmp_path, capsys, *words)


def test_example_data(tmp_path):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
    import make_example_data

    sys.argv, arguments = ["make", str(tmp_path / "x"), "--images", "6"], sys.argv
    make_example_data.main()
    sys.argv = arguments
    shapes = {}
    for name in ("leaves", "oct", "octmnist.npz", "deep", "bands", "panoramas"):
        size = ["data.image_size=32"] if name == "leaves" else []
        assert show_data.main([str(tmp_path / "x" / name), *size, "--json", str(tmp_path / "o.json")]) == 0
        numbers = json.loads((tmp_path / "o.json").read_text())
        shapes[name] = (numbers["shape"], numbers["dtype"], len(numbers["classes"] or []))
    assert shapes == {
        "leaves": ([3, 32, 32], "uint8", 3),
        "oct": ([1, 28, 28], "uint8", 4),
        "octmnist.npz": ([1, 28, 28], "uint8", 4),
        "deep": ([1, 16, 16], "uint16", 0),
        "bands": ([5, 16, 16], "float32", 0),
        "panoramas": ([1, 24, 40], "uint8", 0),
    }


def test_what_a_run_held_out_is_found_in_its_data_alone(tmp_path, run, capsys):
    """Whatever is compared with, of however many images, and unless the names are numbers of other rows."""
    noise(tmp_path / "data" / "train", 40)
    noise(tmp_path / "data" / "test", 10, seed=1)
    run(
        f"data.dataset={tmp_path}/data",
        f"output_dir={tmp_path}/run",
        "data.labels=none",
        "validate_every=2",
        "data.validation=hold_out",
    )
    common = ["samples.num_images=6", "samples.num_inference_steps=2", "data.labels=none", "data.test_split=held_out"]

    def counts(name, *words):
        output = tmp_path / name
        pipeline = str(tmp_path / "run" / "pipeline")
        assert evaluate.main([pipeline, *common, f"output_dir={output}", *words]) == 0, capsys.readouterr().err
        (record,) = (r for r in results(output) if r["metric"].startswith("nearer"))
        return record["num_reference"], record["num_test_images"]

    data = f"data.dataset={tmp_path}/data"
    assert counts("a", data) == (36, 4)
    assert counts("b", data, "data.reference_split=test") == (10, 4)
    assert counts("c", data, "data.max_images=3") == (3, 3)
    (tmp_path / "data" / "train" / read_record(tmp_path / "run").held_out[0].split("/")[-1]).unlink()
    assert counts("d", data) == (36, 3)
    assert "1 of the 4 images held out are missing" in capsys.readouterr().out

    record = read_record(tmp_path / "run")
    noise(tmp_path / "other" / "train", 40, top=100)  # of the same names
    words = [str(tmp_path / "run" / "pipeline"), *common, f"data.dataset={tmp_path}/other", f"output_dir={tmp_path}/f"]
    assert evaluate.main(words) == 1
    assert "is another image than the one of" in capsys.readouterr().err
    assert evaluate.main([*words, "data.test_split=none"]) == 0
    assert "is another image than the one of" in (said := capsys.readouterr().out) and "all are compared with" in said

    record.held_out, record.held_out_digests = ["row 3", "row 7"], None  # as older releases wrote it
    record.write(tmp_path / "run")
    shutil.rmtree(tmp_path / "other")
    noise(tmp_path / "other" / "train", 12)
    words = [str(tmp_path / "run" / "pipeline"), *common, f"data.dataset={tmp_path}/other", f"output_dir={tmp_path}/e"]
    assert evaluate.main(words) == 1
    assert "which of them were held out cannot be known" in capsys.readouterr().err
    assert evaluate.main([*words, "data.test_split=none"]) == 0
    assert ": all are compared with" in capsys.readouterr().out


def test_values_of_another_kind_than_the_networks_are_refused(tmp_path, run, capsys):
    noise(tmp_path / "data", 20)
    run(f"data.dataset={tmp_path}/data", f"output_dir={tmp_path}/run")
    noise(tmp_path / "wide", 20, dtype=np.uint16)
    words = [str(tmp_path / "run" / "pipeline"), "neighbors.num_images=0", f"output_dir={tmp_path}/e"]
    assert evaluate.main([*words, f"data.dataset={tmp_path}/wide", "data.white_level=65535"]) == 1
    error = capsys.readouterr().err
    assert "data.white_level: the values of" in error and "compares images of one kind" in error
    assert not (tmp_path / "e").exists()


def test_samples_of_several_splits_are_refused(tmp_path, capsys):
    noise(tmp_path / "own", 12)
    for split in ("train", "test"):
        noise(tmp_path / "samples" / split, 4)
    words = [str(tmp_path / "samples"), str(tmp_path / "own"), f"output_dir={tmp_path}/e"]
    assert evaluate.main(words) == 1
    assert "it has the splits 'train', 'test': give the folder of one of them" in capsys.readouterr().err
    words[0] += "/train"
    assert evaluate.main([*words, "samples.classes=balanced"]) == 1
    assert "samples.classes=balanced needs a pipeline" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_images_shape(tmp_path, run, capsys):
    words = f"data.dataset={noise(tmp_path / 'data', 8)}", f"output_dir={tmp_path}/run"
    run(*words)
    shutil.rmtree(tmp_path / "data")
    noise(tmp_path / "data", 8, shape=(12, 12))
    error = refused(tmp_path, capsys, *words, "resume=latest", "steps=4")
    assert "the images were 1 x 8 x 8 when the run began, but those of" in error and "are 1 x 12 x 12 now" in error


def test_rows_that_were_added_do_not_take_the_names_of_those_held_out(tmp_path, run, capsys):
    (tmp_path / "data").mkdir()

    def write(name, seed, count):
        values = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
        images = {"image": [Image.fromarray(value) for value in values]}
        datasets.Dataset.from_dict(images).to_parquet(str(tmp_path / "data" / f"{name}.parquet"))

    write("b", 0, 20)
    words = f"data.dataset={tmp_path}/data", f"output_dir={tmp_path}/run", "validate_every=2"
    run(*words)
    write("a", 1, 5)  # before the others
    error = refused(tmp_path, capsys, *words, "resume=latest", "steps=4")
    assert "rows were added or taken away, and which images the run has trained on cannot be known" in error


@pytest.mark.parametrize("shape, message", [((6, 8), "are 1 x 6 x 8"), ((8, 8, 3), "are 3 x 8 x 8")])
def test_validation_images_are_neither_cropped_nor_turned_gray(tmp_path, run, capsys, shape, message):
    noise(tmp_path / "data" / "train", 8)
    noise(tmp_path / "data" / "validation", 4, shape=shape, seed=1)
    words = f"data.dataset={tmp_path}/data", f"output_dir={tmp_path}/run", "validate_every=2"
    assert message in refused(tmp_path, capsys, *words)
    run(*words, "data.image_size=[8,8]", "data.channels=1")


def test_class_names_stay_where_another_split_has_more(tmp_path, run):
    for split, names in (("train", "ab"), ("test", "abc")):
        for seed, name in enumerate(names):
            noise(tmp_path / "data" / split / name, 3, seed=seed)
    run(f"data.dataset={tmp_path}/data", f"output_dir={tmp_path}/run", "model.num_class_embeds=2")
    config = json.loads((tmp_path / "run" / "pipeline" / "unet" / "config.json").read_text())
    assert config["class_names"] == ["a", "b"]


def test_a_run_on_the_test_split_is_not_tested_on_it(tmp_path, run, capsys):
    for seed, split in enumerate(("train", "test")):
        noise(tmp_path / "data" / split, 20, seed=seed)
    data = f"data.dataset={tmp_path}/data"
    run(data, f"output_dir={tmp_path}/run", "data.split=test", "validate_every=2", "data.validation=hold_out")
    words = [str(tmp_path / "run" / "pipeline"), data, f"output_dir={tmp_path}/e", "samples.num_images=6"]
    assert evaluate.main([*words, "samples.num_inference_steps=2"]) == 0, capsys.readouterr().err
    (record,) = (r for r in results(tmp_path / "e") if r["metric"].startswith("nearer"))
    assert record["num_test_images"] == 2  # those that it held out


def test_a_linked_pipeline_is_still_that_of_its_run(tmp_path, run, capsys):
    data = f"data.dataset={noise(tmp_path / 'data', 20)}"
    run(data, f"output_dir={tmp_path}/run", "validate_every=2")
    (tmp_path / "link").symlink_to(tmp_path / "run" / "pipeline")
    words = [str(tmp_path / "link"), data, f"output_dir={tmp_path}/e", "samples.num_images=6"]
    assert evaluate.main([*words, "samples.num_inference_steps=2"]) == 0, capsys.readouterr().err
    (record,) = (r for r in results(tmp_path / "e") if r["metric"].startswith("nearer"))
    assert (record["num_reference"], record["num_test_images"]) == (18, 2)


def test_an_evaluation_leaves_other_files_alone(tmp_path, run, capsys):
    data = noise(tmp_path / "data", 20)
    run(f"data.dataset={data}", f"output_dir={tmp_path}/run")
    samples = tmp_path / "e" / "samples"
    samples.mkdir(parents=True)
    others = ["2024 notes.txt", "1_patient.png", "0.npy", "000009.png"]
    for name in others:
        (samples / name).write_text("")
    options = ["samples.num_inference_steps=2", "neighbors.num_images=0", "save_images=true", "samples.num_images=6"]
    pipeline, output = str(tmp_path / "run" / "pipeline"), f"output_dir={tmp_path}/e"
    assert evaluate.main([pipeline, f"data.dataset={data}", output, *options]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in samples.iterdir()) == sorted(others[:3] + [f"{k:06}.png" for k in range(6)])
    words = [f"data.dataset={data}", "save_images=true", "neighbors.num_images=0"]
    for path, *more, message in (
        (samples, output, "would write into"),
        (tmp_path / "run", output, f"evaluate {tmp_path}/run/pipeline"),
        (pipeline, f"output_dir={data}/e", "lies in data.dataset="),
        (pipeline, f"output_dir={data}/0_00.png/e", "lies in data.dataset="),
        (pipeline, f"output_dir={tmp_path}/small.yaml/e", "small.yaml is a file"),
        (pipeline, output, f"cache_dir={tmp_path}/small.yaml", "small.yaml is a file"),
    ):
        assert evaluate.main([str(path), *words, *more]) == 1
        assert message in (error := capsys.readouterr().err) and "Traceback" not in error, error


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}'])
def test_a_record_that_is_none_is_named(tmp_path, run, capsys, content):
    data = f"data.dataset={noise(tmp_path / 'data', 20)}"
    run(data, f"output_dir={tmp_path}/run")
    (tmp_path / "run" / "images.json").write_text(content)
    assert evaluate.main([str(tmp_path / "run" / "pipeline"), data, f"output_dir={tmp_path}/e"]) == 1
    assert "images.json is no record of a run's images" in capsys.readouterr().err


def test_folders_of_a_run_may_be_links(tmp_path, run):
    """To another disk, say: what they lead to is never deleted in their place."""
    words = f"data.dataset={noise(tmp_path / 'data', 8)}", f"output_dir={tmp_path}/run"
    run(*words)
    for name in ("checkpoints", "pipeline"):
        (tmp_path / "run" / name).rename(tmp_path / f"{name} elsewhere")
        (tmp_path / "run" / name).symlink_to(tmp_path / f"{name} elsewhere")
    for steps in (4, 6):
        run(*words, "resume=latest", f"steps={steps}")
    run(*words, "overwrite=true")
    assert (tmp_path / "pipeline elsewhere" / "model_index.json").exists()
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")) == []


def test_held_out_images_are_not_left_in_a_stream(tmp_path, run, capsys):
    words = f"data.dataset={noise(tmp_path / 'data', 20)}", f"output_dir={tmp_path}/run"
    run(*words, "validate_every=2")
    error = refused(tmp_path, capsys, *words, "resume=latest", "steps=4", "data.streaming=true")
    assert "this run has held 2 images out, which cannot be left out of a stream: set data.streaming=false" in error


def test_held_out_images_that_were_renamed_are_found(tmp_path, run, capsys):
    data = noise(tmp_path / "data", 30)
    words = f"data.dataset={data}", f"output_dir={tmp_path}/run"
    run(*words, "validate_every=2")
    held_out = sorted(read_record(tmp_path / "run").held_out)
    last = int(held_out[-1][2:4])
    for k in reversed(range(last, 30)):  # a picture is inserted before the last one that was held out
        (data / f"0_{k:02}.png").rename(data / f"0_{k + 1:02}.png")
    Image.new("L", (8, 8), 7).save(data / f"0_{last:02}.png")
    error = refused(tmp_path, capsys, *words, "resume=latest", "steps=4")
    assert f"0_{last + 1:02}.png" in error and f"is the image that the run has held out as {held_out[-1]}" in error


def test_a_copy_of_an_image_that_is_gone_has_no_new_name(tmp_path, run, capsys):
    data = noise(tmp_path / "data", 30)
    words = f"data.dataset={data}", f"output_dir={tmp_path}/run"
    run(*words, "validate_every=2")
    gone, *_, kept = read_record(tmp_path / "run").held_out
    other = next(path for path in data.iterdir() if path.name not in read_record(tmp_path / "run").held_out)
    shutil.copy(data / gone, other)
    (data / gone).unlink()
    run(*words, "resume=latest", "steps=4")
    assert f"1 of the 3 images held out for validation are missing, such as {gone}" in capsys.readouterr().out


def test_a_run_of_an_older_version_keeps_the_numbers_of_its_classes(tmp_path, run):
    """Which stood in the order of the alphabet, also where they were numbers."""
    for name in range(11):
        noise(tmp_path / "data" / str(name), 2, seed=name)
    words = f"data.dataset={tmp_path}/data", f"output_dir={tmp_path}/run", "model.num_class_embeds=11"
    run(*words)
    state = tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json"
    content = json.loads(state.read_text())
    assert content["images"]["class_names"] == [*map(str, range(11))]
    content["images"]["class_names"].sort()
    state.write_text(json.dumps(content))
    run(*words, "resume=latest", "steps=4")
    assert ScoreSdePipeline.from_pretrained(tmp_path / "run" / "pipeline").class_names[:3] == ["0", "1", "10"]


def test_reference_images_are_those_that_were_chosen(tmp_path, run):
    """A run on some of the images is compared with these, and not with others."""
    data = f"data.dataset={noise(tmp_path / 'data', 40)}"
    run(data, f"output_dir={tmp_path}/run", "data.max_images=20", "validate_every=2")
    words = [str(tmp_path / "run" / "pipeline"), data, f"output_dir={tmp_path}/e", "samples.num_images=6"]
    assert evaluate.main([*words, "samples.num_inference_steps=2"]) == 0
    (record,) = (r for r in results(tmp_path / "e") if r["metric"].startswith("nearer"))
    assert (record["num_reference"], record["num_test_images"]) == (18, 2)


def test_samples_of_floats_need_the_range_of_the_real_images(tmp_path, capsys):
    for name, high in (("real", 1.0), ("samples", 0.1)):
        (tmp_path / name).mkdir()
        for k in range(6):
            values = np.random.default_rng(k).uniform(0, high, (8, 8)).astype(np.float32)
            np.save(tmp_path / name / f"{k}.npy", values)
    words = [f"{tmp_path}/samples", f"{tmp_path}/real", f"output_dir={tmp_path}/e"]
    assert evaluate.main(words) == 1
    assert "say which values are black and white by data.value_range" in capsys.readouterr().err
    assert evaluate.main([*words, "data.value_range=[0,1]"]) == 0


def test_classes_that_nobody_trains_are_told_of(tmp_path, run, capsys):
    for name in ("blight", "rust"):
        noise(tmp_path / "leaves" / name, 4)
    words = f"data.dataset={tmp_path}/leaves", f"output_dir={tmp_path}/run"
    run(*words)
    assert "The 2 classes are not used: model.num_class_embeds=2 would train" in capsys.readouterr().out
    run(*words, "overwrite=true", "model.num_class_embeds=5")
    assert "has 2 classes: the rest is never trained" in capsys.readouterr().out


def test_one_thing_is_said_once(tmp_path, capsys):
    data = str(noise(tmp_path / "data", 4))
    assert show_data.main([data, f"data.dataset={tmp_path}"]) == 1
    assert f"data.dataset is {data} already, and data.dataset={tmp_path} says otherwise" in capsys.readouterr().err
