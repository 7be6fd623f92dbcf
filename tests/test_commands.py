"""The sub-commands of sde-diffusers that use a model, and the help of all."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from warm_python import run_python

from sde_diffusers import (
    NCSNppUNet2DModel,
    ScoreSdeExponentialScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdeRestorationPipeline,
)
from sde_diffusers.cli import COMMANDS, command_line, main
from sde_diffusers.commands import sample
from sde_diffusers.commands.picture_files import pictures_of
from sde_diffusers.fitting.sampler_fit import MOST_STEPS

HELP = """
import sys
from contextlib import suppress
from sde_diffusers.cli import main
for words in ([], ["sample"], ["bits-per-dim"], ["restore", "inpaint"], ["show"], ["convert"], ["export"], ["push"]):
    with suppress(SystemExit):
        main([*words, "--help"])
with suppress(SystemExit):
    main(["--version"])
print(sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny pipeline of three classes, two of them with names, in a folder."""
    torch.manual_seed(0)
    unet = NCSNppUNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        scale_by_sigma=False,
        num_class_embeds=3,
        class_names=["bag", "ankle boot"],
    )
    pipe = ScoreSdePipeline(unet=unet.eval(), scheduler=ScoreSdeExponentialScheduler(sde="vp"))
    pipe.save_pretrained(tmp_path_factory.mktemp("model") / "tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe, str(tmp_path_factory.getbasetemp() / "model0" / "tiny")


def answer(capsys, *arguments):
    """What a command prints for programs."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_help_imports_nothing_that_a_command_would_need():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("usage: ") == 8, done.stderr
    assert set(ast_list(done.stdout.splitlines()[-1])) <= {"__main__", "sde_diffusers", *site_modules()}


def site_modules():
    """What the environment itself imports at the start of any Python."""
    command = "import sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    return ast_list(subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout)


def ast_list(text):
    return json.loads(text.replace("'", '"'))


def parsers_below(parser):
    """Of the sub-commands, and of theirs."""
    for sub in parser._subparsers._group_actions[0].choices.values() if parser._subparsers else ():
        yield sub
        yield from parsers_below(sub)


def test_examples_of_the_help_are_commands():
    parser = command_line()
    texts = [sub.epilog for sub in parsers_below(parser)]
    examples = [line.strip() for text in texts for line in text.splitlines()[1:]]
    assert len(texts) == len(COMMANDS) + 4 + 4 and len(examples) > len(texts)  # 4 restorations, 4 sources
    assert all(text.startswith("examples:\n  ") for text in texts)
    for example in examples:
        program, *words = shlex.split(example)
        assert program == "sde-diffusers" and callable(parser.parse_args(words).run)


def test_sample(model, capsys, tmp_path):
    """Each image is that of its own seed, however many are drawn at once."""
    pipe, folder = model
    found = answer(capsys, "sample", folder, tmp_path / "out", "--class", "bag", 2, "bag", "--steps", 2, "--seed", 5,
                   "--batch-size", 2, "--guidance-scale", 2, "--sampler", "probability-flow")  # fmt: skip
    pipe = ScoreSdePipeline(
        unet=pipe.unet, scheduler=ScoreSdeProbabilityFlowScheduler.from_config(pipe.scheduler.config)
    )
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(5 + k) for k in range(3)]
    expected = pipe(3, 2, class_labels=[0, 2, 0], guidance_scale=2.0, generator=generators)
    assert found["seeds"] == [5, 6, 7] and found["classes"] == ["bag", 2, "bag"] and found["nfe"] == expected.nfe
    assert [np.array(Image.open(file)).tolist() for file in found["files"]] == [
        np.array(image).tolist() for image in expected.images
    ]
    arguments = ["sample", folder, str(tmp_path / "out.npy"), "--number", "3", "--steps", "2", "--class", "bag"]
    assert main(arguments) == 0 and "Wrote 3 images" in capsys.readouterr().out
    array = np.load(tmp_path / "out.npy")
    assert array.shape == (3, 8, 8, 1) and array.dtype == np.uint8


def test_settings_of_samplers(model, capsys, tmp_path):
    """`--eta` is the saved sampler's, here, and `--snr` that of another one."""
    pipe, folder = model
    for words, scheduler in (
        (["--eta", 1], ScoreSdeExponentialScheduler.from_config(pipe.scheduler.config, eta=1.0)),
        (
            ["--sampler", "predictor-corrector", "--snr", 0.3],
            ScoreSdePredictorCorrectorScheduler.from_config(pipe.scheduler.config, snr=0.3),
        ),
    ):
        found = answer(capsys, "sample", folder, tmp_path / words[0], "--class", 1, "--steps", 3, *words)
        other = ScoreSdePipeline(unet=pipe.unet, scheduler=scheduler)
        expected = other(1, 3, class_labels=1, generator=[torch.Generator().manual_seed(0)]).images[0]
        assert (np.array(Image.open(found["files"][0])) == np.array(expected)).all()


def test_bits_per_dim(model, capsys, tmp_path):
    pipe, folder = model
    pictures = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 200)]
    for k, picture in enumerate(pictures):
        picture.save(tmp_path / f"{k}.png")
    found = answer(capsys, "bits-per-dim", folder, tmp_path, "--class", "bag", "--tolerance", 0.1, "--batch-size", 1)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    expected = [
        pipe.bits_per_dim(picture, generator=[generator], class_labels="bag", rtol=0.1, atol=0.1).bits_per_dim.item()
        for picture, generator in zip(pictures, generators, strict=True)
    ]
    assert list(found["bits_per_dim"].values()) == expected and found["mean"] == sum(expected) / 2
    assert found["standard_error"] == pytest.approx(abs(expected[0] - expected[1]) / 2)


def test_pictures_are_checked_before_any_is_measured(model, capsys, tmp_path, monkeypatch):
    """What is accepted does not depend on the batches."""
    monkeypatch.setattr(ScoreSdePipeline, "bits_per_dim", lambda *a, **k: pytest.fail("was measured"))
    Image.new("L", (8, 8), 9).save(tmp_path / "good.png")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "good_2.png")  # grey, in three equal channels
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8), (9, 9, 8)).save(tmp_path / "colour.png")
    Image.new("I;16", (8, 8), 9).save(tmp_path / "deep.png")
    Image.new("F", (8, 8), 0.5).save(tmp_path / "real.tiff")
    Image.new("F", (8, 8), 1.5).save(tmp_path / "beyond.tiff")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:45])
    good = [str(tmp_path / "good.png"), str(tmp_path / "good_2.png")]
    for bad, message in (
        ("wide.png", "has 9 x 8 pixels, but the model's images 8 x 8"),
        ("deep.png", "holds uint16 values, but the model's images uint8"),
        ("real.tiff", f"holds float32 values, but {good[0]} uint8"),
        ("cut.png", "cannot be read as a picture"),
    ):
        for size in ("1", "16"):
            assert main(["bits-per-dim", model[1], *good, str(tmp_path / bad), "--batch-size", size]) == 1
            assert f"{bad} {message}" in capsys.readouterr().err
    assert main(["bits-per-dim", model[1], str(tmp_path / "beyond.tiff")]) == 1
    assert "beyond.tiff must lie in [0, 1]" in capsys.readouterr().err


def test_restore(model, capsys, tmp_path):
    """What is seen of a picture stays as it is."""
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    hidden = np.zeros((8, 8), np.uint8)
    hidden[2:5, 3:6] = 255
    for name, array in (("picture", values), ("mask", hidden)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    found = answer(capsys, "restore", "inpaint", model[1], tmp_path / "picture.png", tmp_path / "out",
                   "--mask", tmp_path / "mask.png", "--samples", 2, "--steps", 2, "--class", "ankle boot")  # fmt: skip
    *samples, mean, deviation = (np.array(Image.open(file)) for file in found["files"])
    assert len(samples) == 2 and not (samples[0] == samples[1]).all()
    assert all((sample[hidden == 0] == values[hidden == 0]).all() for sample in (*samples, mean))
    assert (deviation[hidden == 0] == 0).all() and deviation.any()


def test_show(model, capsys):
    pipe, folder = model
    facts = answer(capsys, "show", folder)
    assert facts["images"] == [1, 8, 8] and facts["num_classes"] == 3 and facts["class_names"] == ["bag", "ankle boot"]
    assert facts["networks"]["unet"] == {"class": "NCSNppUNet2DModel", "parameters": pipe.unet.num_parameters()}
    assert facts["sampler"] == "ScoreSdeExponentialScheduler" and facts["sampler_config"]["sde"] == "vp"
    assert main(["show", folder]) == 0 and "8 x 8, 1 channel" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sample", "MODEL", "new", "--class", "Bagg"], "did you mean 'bag'"),
        (["sample", "MODEL", "new", "--class", "0", "1", "--number", "3"], "one for each of 3 images"),
        (["sample", "MODEL", "."], "exists"),
        (["sample", "nowhere", "new"], "nowhere"),
        (["sample", "MODEL", "new", "--snr", "0.2"], "add --sampler predictor-corrector"),
        (["sample", "MODEL", "new", "--sampler", "consistency"], "consisten"),
        (["bits-per-dim", "MODEL", "nothing.png"], "no file or folder nothing.png"),
        (["bits-per-dim", "MODEL", "wide.png"], "wide.png has 9 x 8 pixels, but the model's images 8 x 8"),
        (["bits-per-dim", "MODEL", "text.png"], "text.png cannot be read"),
        (["bits-per-dim", "MODEL", "wide.png", "wide.png"], "wide.png is given twice"),
        (["bits-per-dim", "MODEL", "moving.gif"], "moving.gif holds 2 pictures"),
        (["sample", "MODEL", "new.png"], "new.png is to be a folder"),
        (["sample", "MODEL", "new.npz"], "new.npz is to be a folder"),
        (["sample", "MODEL", "text.png/new"], "text.png is a file"),
        (["fit-sampler", "MODEL", "--output", "new", "--picture", "fits.text"], "must end in what names a format"),
        (["export", "MODEL", "text.png/new"], "text.png is a file"),
        (["export", "MODEL", "MODEL/new"], "must not be within the pipeline's own folder"),
        (["convert", "export", "MODEL", "MODEL/new"], "must not be within the pipeline's own folder"),
        (["fit-sampler", "MODEL", "--output", "MODEL/new"], "must not be within the pipeline's own folder"),
        (["sample", "MODEL", "MODEL/unet/new"], "output must not be within the pipeline's own folder"),
        (["sample", "MODEL", "MODEL/new.npy"], "output must not be within the pipeline's own folder"),
        (
            ["restore", "deblur", "MODEL", "small.png", "MODEL/new", "--blur", "1"],
            "output must not be within the pipeline's own folder",
        ),
        (["fit-sampler", "MODEL", "--output", "new.png", "--picture", "./new.png"], "another place than --output"),
        (["fit-sampler", "MODEL", "--output", "new", "--picture", "fits.xbm"], "must end in what names a format"),
        (["convert", "export", "MODEL", "text.png/new"], "text.png is a file"),
        (
            ["restore", "colorize", "MODEL", "wide.png", "new"],
            "colorize needs a model of 3 channels, but the images of",
        ),
        (["restore", "inpaint", "MODEL", "wide.png", "new", "--mask", "small.png"], "as the image, but is 8 x 8"),
        (["restore", "deblur", "MODEL", ".", "new", "--blur", "1"], "picture must be a file, but . is a folder"),
        (
            ["restore", "inpaint", "MODEL", "wide.png", "new", "--mask", "."],
            "--mask must be a file, but . is a folder",
        ),
        (["show", "text.png"], "must be the folder of a pipeline, or an id on the Hub, but is 'text.png'"),
        (["sample", "MODEL", "new", "--sampler", "exponential", "--eta", "1e30"], "--eta must be a finite number"),
        (["restore", "colorize", "MODEL", "colour.png", "new"], "colorize needs a model of 3 channels"),
        (["sample", "MODEL", "new", "--guidance-scale", "2"], "--guidance-scale=2.0 needs --class"),
        *(
            (["show", "MODEL", "--device", device], "--device must be one of what this machine has, cpu")
            for device in ("tpu", "CPU", "cuda:99", "meta", "")
        ),
        (["restore", "inpaint", "MODEL", "wide.png", "new", "--mask", "text.png"], "text.png cannot be read"),
        (["show", "owner/model", "--device", "cpu"], "owner/model"),
    ],
)
def test_errors_are_one_line(model, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (9, 8)).save("wide.png")
    Image.new("L", (8, 8), 255).save("small.png")
    Image.new("L", (8, 8)).save("moving.gif", save_all=True, append_images=[Image.new("L", (8, 8), 255)])
    Image.new("RGB", (8, 8), (0, 0, 255)).save("colour.png")
    (tmp_path / "text.png").write_text("text")
    assert main([word.replace("MODEL", model[1]) for word in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sde-diffusers: error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("**/new*")) and not list(Path(model[1]).glob("**/*new*"))


def test_the_end_by_control_c(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sde_diffusers.commands.show.loaded_pipeline", interrupted)
    assert main(["show", "model"]) == 130
    assert capsys.readouterr().err == "sde-diffusers: interrupted\n"


def test_an_interrupted_command_says_what_is_there(model, capsys, tmp_path, monkeypatch):
    def interrupted(pictures, folder, save=sample.save_pictures):
        if folder.exists():
            raise KeyboardInterrupt
        return save(pictures, folder)

    monkeypatch.setattr(sample, "save_pictures", interrupted)
    out = tmp_path / "out"
    assert main(["sample", model[1], str(out), "--number", "5", "--batch-size", "2", "--steps", "1"]) == 130
    assert f"2 of 5 images are in {out}." in capsys.readouterr().err and len(list(out.iterdir())) == 2


@pytest.mark.parametrize(
    "command, option, values",
    [
        ("sample model out", "--steps", ("0", "1000001", "99999999999", "9" * 5000, "1.5")),
        ("sample model out", "--number", ("0", "99999999999")),
        ("sample model out", "--seed", ("-1", str(2**63))),
        ("sample model out", "--sampler", ("best",)),
        ("sample model out", "--guidance-scale", ("-1", "inf", "x")),
        ("sample model out", "--guide-scale", ("-1", "nan")),
        ("sample model out", "--eta", ("-1", "nan")),
        ("sample model out", "--snr", ("0", "-1", "nan")),
        ("bits-per-dim model in", "--tolerance", ("0", "-1", "nan", "inf")),
        ("restore super-resolve model in out", "--factor", ("1", "1025", "10000000")),
        ("restore deblur model in out", "--blur", ("0", "-1", "nan", "1001")),
        ("restore inpaint model in out --mask m", "--noise-std", ("-1", "nan")),
        ("fit-sampler model", "--steps", ("1", str(MOST_STEPS + 1))),
        ("fit-sampler model", "--latents", ("2",)),
        ("push folder me/it", "--max-gigabytes", ("-1", "inf")),
    ],
)
def test_numbers_out_of_range_are_refused_by_the_options_name(capsys, command, option, values):
    for value in values:
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), option, value])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and f"argument {option}: " in error and repr(value) in error


def test_options_of_several_values_come_last(capsys):
    """As the usage has it, which argparse would print the other way round."""
    for words in (["sample", "--class", "Bag", "model", "out"], ["fit-sampler", "--steps", "3", "4", "model"]):
        with pytest.raises(SystemExit):
            main(words)
        error = capsys.readouterr().err
        assert error.startswith(f"usage: sde-diffusers {words[0]} [-h] model")
        assert f"{words[1]} takes all that follows: it comes last, or is ended by --" in error
    options = command_line().parse_args(["sample", "--class", "Bag", "3", "--", "model", "out"])
    assert (options.classes, options.model, str(options.output)) == (["Bag", "3"], "model", "out")


def test_an_array_by_any_spelling(model, capsys, tmp_path):
    found = answer(capsys, "sample", model[1], tmp_path / "out.NPY", "--steps", 1, "--class", 0)
    assert found["files"] == [str(tmp_path / "out.NPY")] and np.load(tmp_path / "out.NPY").shape == (1, 8, 8, 1)


def test_completion(capsys):
    pytest.importorskip("shtab", reason="shtab is not installed")
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    assert stop.value.code == 0 and "bits-per-dim" in script and "--guidance-scale" in script


def saved(folder, **config):
    """A tiny model of 8 x 8 images in a folder."""
    torch.manual_seed(0)
    options = {"in_channels": 1, "block_out_channels": (8,), "layers_per_block": 1, "scale_by_sigma": False, **config}
    unet = NCSNppUNet2DModel(sample_size=8, attention_resolutions=(), **options)
    ScoreSdePipeline(unet=unet.eval(), scheduler=ScoreSdeExponentialScheduler(sde="vp")).save_pretrained(folder)
    return str(folder)


def test_a_class_that_is_named_by_a_number(tmp_path, capsys):
    """`--class 1` is the class of that name, the first; a number that is no name is a number."""
    folder = saved(tmp_path / "model", num_class_embeds=4, class_names=["1", "2", "3"])
    pipe = ScoreSdePipeline.from_pretrained(folder)
    for word, number in [("1", 0), ("3", 2), ("0", 0)]:
        answer(capsys, "sample", folder, tmp_path / f"{word}.npy", "--class", word, "--steps", 2)
        expected = pipe(
            1, 2, class_labels=number, generator=[torch.Generator().manual_seed(0)], output_type="np"
        ).images
        np.testing.assert_array_equal(np.load(tmp_path / f"{word}.npy"), (255 * expected).round().astype(np.uint8))
    assert main(["sample", folder, str(tmp_path / "other"), "--class", "7"]) == 1


LIMITED = """
import json, os, resource, signal, sys
import torch, tqdm
from sde_diffusers.cli import main

sys.dont_write_bytecode = True
os.dup2(os.open(sys.argv[2], os.O_WRONLY), sys.stderr.fileno())
os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
for words in json.loads(sys.argv[1]):
    print(main(words), file=sys.stderr)
"""


def test_a_full_disk_leaves_nothing_half(tmp_path):
    """A process that can write files of 50 bytes only."""
    folder, out = saved(tmp_path / "model"), tmp_path / "out"
    picture = tmp_path / "picture.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture)
    commands = [
        ["sample", folder, out, "--steps", 1],
        ["sample", folder, f"{out}.npy", "--steps", 1, "--number", 4],
        ["restore", "deblur", folder, picture, out, "--blur", 1, "--steps", 1],
        ["fit-sampler", folder, "--steps", 2, "--latents", 8],
    ]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = json.dumps([list(map(str, command)) for command in commands])
    os.mkfifo(tmp_path / "errors")  # which has no size that is limited
    with open(os.open(tmp_path / "errors", os.O_RDONLY | os.O_NONBLOCK)) as reader:
        done = run_python(["-c", LIMITED, words, tmp_path / "errors"])
        written = reader.read()
    errors = written.split("\n1\n")  # each ends with its status
    assert len(errors) == 1 + len(commands) and errors.pop() == "", (written, done.stderr)
    assert all("File too large" in error for error in errors), written
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_noise_is_not_that_of_fitted_steps(tmp_path, capsys):
    """With `--eta 1`, as the model was saved, the steps that were fitted to the ODE are not taken."""
    folder = Path(__file__).parents[1] / "pretrained" / "fashion-mnist-ve"
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    assert config["eta"] == 1 and "3" in config["fits"]["steps"]
    answer(capsys, "sample", folder, tmp_path / "noisy.npy", "--steps", 3, "--eta", 1)
    answer(capsys, "sample", folder, tmp_path / "fitted.npy", "--steps", 3)
    assert (np.load(tmp_path / "noisy.npy") != np.load(tmp_path / "fitted.npy")).any()


def test_what_no_picture_holds_is_refused_with_what_does(tmp_path, capsys):
    folder = saved(tmp_path / "model", in_channels=5)
    assert main(["sample", folder, str(tmp_path / "out")]) == 1
    assert "name a file of numbers, such as" in capsys.readouterr().err
    answer(capsys, "sample", folder, tmp_path / "out.npy", "--steps", 1)
    assert np.load(tmp_path / "out.npy").shape == (1, 8, 8, 5)


def test_floating_point_pictures_at_the_end_of_their_range(tmp_path, capsys):
    """1.1 is not a number of float32, in which pictures are kept: the nearest is above it."""
    folder = saved(tmp_path / "model", value_dtype="float32", value_range=[-0.5, 1.1])
    pixels = np.full((8, 8), 1.1, np.float32)
    pixels[0] = -0.5
    Image.fromarray(pixels).save(tmp_path / "ends.tiff")
    assert np.isfinite(answer(capsys, "bits-per-dim", folder, tmp_path / "ends.tiff")["mean"])
    answer(capsys, "sample", folder, tmp_path / "drawn", "--steps", 1)
    assert np.isfinite(answer(capsys, "bits-per-dim", folder, tmp_path / "drawn")["mean"])


def test_every_coloured_picture_is_told_of(tmp_path, capsys):
    folder = saved(tmp_path / "model")
    for name in ("one", "two"):
        Image.new("RGB", (8, 8), (0, 0, 255)).save(tmp_path / f"{name}.png")
    assert main(["bits-per-dim", folder, str(tmp_path / "one.png"), str(tmp_path / "two.png")]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "luminance" in line]
    assert [line.split(" has colours")[0] for line in told] == [str(tmp_path / f"{n}.png") for n in ("one", "two")]


def test_deep_colours_are_not_halved(tmp_path, capsys):
    folder = saved(tmp_path / "model", in_channels=3)
    pixels = np.arange(192, dtype=np.uint16).reshape(8, 8, 3) * 256
    tifffile.imwrite(tmp_path / "deep.tiff", pixels, photometric="rgb")
    assert main(["bits-per-dim", folder, str(tmp_path / "deep.tiff")]) == 1
    assert "colours of 16 bits, of which PIL keeps 8" in capsys.readouterr().err


@pytest.mark.parametrize("with_code", [True, False])
def test_a_fitted_folder_is_what_it_was(tmp_path, capsys, with_code):
    """The same pipeline, with the sampler that was fitted, also where it holds no code; weights are not touched."""
    folder = tmp_path / "model"
    saved(folder)
    pipe = ScoreSdeRestorationPipeline.from_pretrained(folder)
    pipe.unet.to(torch.bfloat16)
    pipe.scheduler = ScoreSdeProbabilityFlowScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(folder, max_shard_size="10KB")
    weights = {file: file.read_bytes() for file in (folder / "unet").iterdir() if file.suffix != ".py"}
    assert len(weights) > 3
    if with_code:
        (module,) = (folder / "scheduler").glob("*.py")
        module.rename(module.with_stem("scheduling_score_sde_01234567"))  # of an older version
        index = (folder / "model_index.json").read_text()
        (folder / "model_index.json").write_text(index.replace(module.stem, "scheduling_score_sde_01234567"))
    else:
        for file in folder.rglob("*.py"):
            file.unlink()
    answer(capsys, "fit-sampler", folder, "--steps", 2, "--latents", 8)
    assert all(file.read_bytes() == content for file, content in weights.items())
    assert len([*folder.rglob("*.py")]) == (3 if with_code else 0)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"][-1] == "ScoreSdeRestorationPipeline"
    assert index["scheduler"][-1] == "ScoreSdeExponentialScheduler"
    again = ScoreSdePipeline.from_pretrained(folder)
    again.scheduler.set_timesteps(2)
    assert type(again.scheduler).__name__ == "ScoreSdeExponentialScheduler" and len(again.scheduler.timesteps) == 2


def test_two_commands_do_not_write_into_one_folder(model, capsys, tmp_path, monkeypatch):
    """Whoever comes second is refused, also while the first one has not written anything yet."""
    draw = sample.draw_images

    def first(options):
        assert main(["sample", model[1], str(tmp_path / "out"), "--seed", "100"]) == 1
        return draw(options)

    monkeypatch.setattr(sample, "draw_images", first)
    assert main(["sample", model[1], str(tmp_path / "out"), "--number", "2", "--steps", "1"]) == 0
    assert "Another command is writing to" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    monkeypatch.setattr(sample, "draw_images", draw)
    assert main(["sample", model[1], str(tmp_path / "link")]) == 1
    assert "link exists" in capsys.readouterr().err


def test_pictures_of_linked_folders_count_and_hidden_ones_do_not(tmp_path):
    for name in ("a/0.png", ".ipynb_checkpoints/1.png", "a/.hidden/2.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / "data" / name)
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "elsewhere" / "3.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "circle").symlink_to(tmp_path / "data")
    found = pictures_of([tmp_path / "data"])
    assert [str(path.relative_to(tmp_path / "data")) for path in found] == ["a/0.png", "link/3.png"]
