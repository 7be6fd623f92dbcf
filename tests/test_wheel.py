"""The wheel holds the package and nothing else, and draws images where it is installed, away from the checkout."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCES = (".*", "__pycache__", "build", "dist", "runs", "*.egg-info", "*.parquet")
INFO = "sde_diffusers-{}.dist-info/"
DRAW = """
import sys
from pathlib import Path

import torch

import sde_diffusers
from sde_diffusers import NCSNppUNet2DModel, ScoreSdeExponentialScheduler, ScoreSdePipeline

installed, checkout = Path(sde_diffusers.__file__), Path(sys.argv[1])
assert installed.is_relative_to(sys.prefix), installed

def draw(pipe, steps):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(batch_size=2, num_inference_steps=steps, generator=generator, output_type="pt").images

size = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1}
unet = NCSNppUNet2DModel(**size, scale_by_sigma=False)
tiny = ScoreSdePipeline(unet=unet.eval(), scheduler=ScoreSdeExponentialScheduler(sde="vp"))
images = draw(tiny, 3)
assert images.shape == (2, 1, 8, 8) and images.isfinite().all()
tiny.save_pretrained("tiny")  # with modules made of the installed package's sources
assert {path.name.rpartition("_")[0] for path in Path("tiny").rglob("*.py")} == {
    "pipeline_score_sde", "scheduling_score_sde", "unet_ncsnpp"
}
assert torch.equal(draw(ScoreSdePipeline.from_pretrained("tiny"), 3), images)

garments = draw(ScoreSdePipeline.from_pretrained("fashion-mnist-ve"), 10)
assert garments.shape == (2, 1, 28, 28) and garments.isfinite().all() and (garments.std(dim=(1, 2, 3)) > 0.1).all()

files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
strangers = [file for file in files if file and Path(file).is_relative_to(checkout / "sde_diffusers")]
assert not strangers, strangers
"""

COMMAND = """
import importlib.metadata, sys

(command,) = importlib.metadata.distribution("sde_diffusers").entry_points
assert (command.group, command.name) == ("console_scripts", "sde-diffusers")
sys.exit(command.load()())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools works beside the sources, and takes up what an earlier build left there."""
    pytest.importorskip("pip", reason="pip is not installed")
    setuptools = next(iter(importlib.metadata.distributions(name="setuptools")), None)
    if setuptools is None or Version(setuptools.version) < Version("77"):
        pytest.skip("there is no setuptools 77 or later, which pyproject.toml asks for, and tests download nothing")
    folder = tmp_path_factory.mktemp("wheel")
    sources = shutil.copytree(ROOT, folder / "sources", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run([sys.executable, "-m", "pip", "wheel", *options, sources])
    (path,) = folder.glob("*.whl")
    return path


def run(command, **options):
    """A command that must succeed, without the variables that would let it find the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_the_package_its_licence_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        version = wheel.name.split("-")[1]
        metadata = file.read(INFO.format(version) + "METADATA").decode()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sde_diffusers").rglob("*.py")}
    modules |= {"sde_diffusers/__init__.pyi", "sde_diffusers/py.typed"}
    info = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    assert len(names) == len(set(names)) and set(names) == modules | {INFO.format(version) + name for name in info}
    assert "sde_diffusers/pipelines/pipeline_score_sde.py" in names and wheel.name.endswith("-py3-none-any.whl")
    assert "\nRequires-Python: >=3" in metadata and "\nRequires-Dist: torch>=" in metadata


def test_it_draws_images_where_it_is_installed_alone(wheel, tmp_path):
    """Third-party packages are those of this environment; its `.pth` files, an editable install's, are not read."""
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    site_packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site_packages)  # all that installing does, but for the command's file, and much faster
    third_party = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site_packages / "third_party.pth").write_text("\n".join(third_party) + "\n")
    shutil.copytree(ROOT / "pretrained" / "fashion-mnist-ve", tmp_path / "fashion-mnist-ve")
    run([python, "-c", DRAW, ROOT], cwd=tmp_path)
    assert "push-space" in run([python, "-c", COMMAND, "--help"], cwd=tmp_path)
