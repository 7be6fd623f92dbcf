"""From a folder that relies on the package to one that does not: what is pushed and exported."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from module_names import module_at, plain
from warm_python import run_python

from sde_diffusers import (
    NCSNppUNet2DModel,
    NoiseConditionalClassifier,
    ScoreSdePipeline,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdeRestorationPipeline,
)
from sde_diffusers.saved_folders.repository import export_folder

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
SHIPPED = sorted(path.parent for path in PRETRAINED.glob("*/model_index.json"))


def make_pipeline(cls=ScoreSdePipeline, **components):
    torch.manual_seed(0)
    unet = NCSNppUNet2DModel(sample_size=8, in_channels=1, block_out_channels=(8, 8), layers_per_block=1)
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="ve", sigma_max=10.0)
    return cls(unet=unet.eval(), scheduler=scheduler, **components)


def without_code(folder):
    """Make of a saved pipeline what `pretrained/` holds: the index names the package's classes, there is no code."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for key, value in index.items():
        if key == "_class_name":
            index[key] = value[1]
        elif isinstance(value, list) and value[0] not in (None, "diffusers"):
            index[key] = ["sde_diffusers", value[1]]
    path.write_text(json.dumps(index))
    for module in folder.rglob("*.py"):
        module.unlink()
    return folder


def files(folder):
    """Relative path -> bytes, of all files."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(2, 3, generator=torch.Generator().manual_seed(0), output_type="pt").images


# The folders that ship with the repository.


def test_no_generated_code_ships():
    assert len(SHIPPED) >= 2 and not list(PRETRAINED.rglob("*.py"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_shipped_pipelines_load_with_the_package_in_both_ways(folder):
    ours, theirs = ScoreSdePipeline.from_pretrained(folder), DiffusionPipeline.from_pretrained(folder)
    assert type(ours) is type(theirs) is ScoreSdePipeline and type(theirs.unet) is NCSNppUNet2DModel
    assert torch.equal(draw(ours), draw(theirs))


WITHOUT_THE_PACKAGE = """
import sys

import torch
from diffusers import DiffusionPipeline

shipped, exported, result = sys.argv[1:]
try:
    DiffusionPipeline.from_pretrained(shipped, trust_remote_code=True)
except AttributeError as error:
    message = str(error)
pipe = DiffusionPipeline.from_pretrained(exported, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
images = pipe(2, 3, generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save({"message": message, "images": images}, result)
"""


def test_an_export_loads_without_the_package(tmp_path):
    """It draws the same images, bit for bit; the folder itself is refused, with the class that is missing."""
    folder = PRETRAINED / "fashion-mnist-ve"
    before = files(folder)
    export_folder(folder, tmp_path / "exported")
    assert files(folder) == before
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    arguments = ["-c", WITHOUT_THE_PACKAGE, folder, tmp_path / "exported", tmp_path / "result.pt"]
    done = run_python(arguments, environment, tmp_path, without=["sde_diffusers"])
    assert done.returncode == 0, done.stderr
    result = torch.load(tmp_path / "result.pt")
    assert "ScoreSdePipeline" in result["message"]
    assert torch.equal(result["images"], draw(ScoreSdePipeline.from_pretrained(folder)))


# What an export adds.


@pytest.mark.parametrize(
    "make",
    [
        make_pipeline,
        lambda: make_pipeline(ScoreSdeRestorationPipeline),
        lambda: make_pipeline(
            classifier=NoiseConditionalClassifier(sample_size=8, in_channels=1, num_classes=3, block_out_channels=(8,))
        ),
    ],
    ids=["plain", "restoration", "classifier"],
)
def test_an_export_is_what_the_pipeline_saves(tmp_path, make):
    """From a folder without code, all files are as `save_pretrained` writes them; what was complete is only copied."""
    make().save_pretrained(tmp_path / "saved")
    without_code(shutil.copytree(tmp_path / "saved", tmp_path / "bare"))
    export_folder(tmp_path / "bare", tmp_path / "exported")
    export_folder(tmp_path / "saved", tmp_path / "copied")
    assert files(tmp_path / "exported") == files(tmp_path / "copied") == files(tmp_path / "saved")


def test_a_network_of_diffusers_needs_no_code(tmp_path):
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    ScoreSdePipeline(unet=unet, scheduler=ScoreSdeProbabilityFlowScheduler(sde="vp")).save_pretrained(tmp_path / "s")
    contents = export_folder(without_code(tmp_path / "s"), tmp_path / "out")
    code = {plain(path) for path in contents if path.endswith(".py")}
    assert code == {"pipeline_score_sde.py", "scheduler/scheduling_score_sde.py"}


def test_code_that_a_folder_carries_stays_its_own(tmp_path):
    """Weights of an older release are copied with the code that they were saved with."""
    make_pipeline().save_pretrained(tmp_path / "old")
    module = module_at(tmp_path / "old", "unet/unet_ncsnpp.py")
    module.write_text(module.read_text() + "# of an older release\n")
    export_folder(tmp_path / "old", tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "old")


# What is refused, before anything is written.


def edit(path, change):
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def break_index(index):
    index["unet"] = ["sde_diffusers", "NCSNpp3DModel"]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: edit(folder / "model_index.json", break_index), "NCSNpp3DModel of sde_diffusers"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json cannot be read"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "must hold a JSON object, but holds a list"),
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json missing"),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "unet/\\*config.json missing"),
        (lambda folder: next((folder / "unet").glob("*.safetensors")).unlink(), "unet/\\*.safetensors missing"),
        (lambda folder: (folder / "unet" / "old.bin").write_bytes(b"pickle"), "pickles.*unet/old.bin"),
    ],
)
def test_what_is_no_complete_pipeline_is_refused(tmp_path, damage, message):
    make_pipeline().save_pretrained(tmp_path / "bare")
    damage(without_code(tmp_path / "bare"))
    with pytest.raises(ValueError, match=message):
        export_folder(tmp_path / "bare", tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_a_pipeline_of_diffusers_is_refused(tmp_path):
    """Not one of this package: there is nothing to add."""
    from diffusers import DDIMPipeline

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    with pytest.raises(ValueError, match="the pipeline's code missing"):
        export_folder(tmp_path / "ddim", tmp_path / "out")


def test_nothing_is_overwritten(tmp_path):
    folder, out = PRETRAINED / "fashion-mnist-ve", tmp_path / "out"
    out.mkdir()
    export_folder(folder, out)  # into an empty folder
    before = files(out)
    with pytest.raises(ValueError, match="`output` must be a new or empty folder, but .*out exists"):
        export_folder(PRETRAINED / "fashion-mnist-subvp", out)
    assert files(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_no_export_goes_into_the_folder_that_it_copies(tmp_path):
    """Or else later exports would hold the copies."""
    folder, link = tmp_path / "saved", tmp_path / "link"
    shutil.copytree(PRETRAINED / "fashion-mnist-ve", folder)
    link.symlink_to(folder)
    before = sorted(tmp_path.rglob("*"))
    for source, output in (
        (folder, folder / "inner"),
        (folder, folder / "unet" / "new" / "inner"),
        (link, folder / "inner"),
        (folder, link / "inner"),
        (folder, tmp_path / "other" / ".." / "saved" / "inner"),
    ):
        with pytest.raises(ValueError, match="`output` must not be within the pipeline's own folder"):
            export_folder(source, output)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target, length):
        raise OSError(28, "No space left on device", target.name)

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(OSError, match="No space left"):
        export_folder(PRETRAINED / "fashion-mnist-ve", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
