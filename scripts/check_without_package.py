"""Check that pushed and exported models load where only diffusers and torch are installed, and draw the same images:

    python scripts/check_without_package.py 0.42.1 0.38.0 [--folder FOLDER] [--pipeline FOLDER]

For each version of diffusers a fresh virtual environment is made (with pip, from the package index). A pipeline's
folder is exported, and pushed from here to a Hub on this machine; there the copy is loaded and the repository pulled,
with `trust_remote_code=True`, and both are sampled with the seed that was used here. Without `trust_remote_code` the
error must be diffusers' own. The exit status says whether all of this held.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
ID = "tester/checked"
DRAW = """
def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(batch_size=4, num_inference_steps=10, generator=generator, output_type="pt").images
"""
HERE = f"""
import sys, torch
from sde_diffusers import ScoreSdePipeline
from sde_diffusers.cli import main
{DRAW}
folder, id, copy, target = sys.argv[1:]
assert main(["push", folder, id]) == 0 and main(["export", folder, copy]) == 0
torch.save(draw(ScoreSdePipeline.from_pretrained(folder)), target)
"""
THERE = f"""
import importlib.util, sys
assert importlib.util.find_spec("sde_diffusers") is None
import diffusers, huggingface_hub, torch
from diffusers import DiffusionPipeline
{DRAW}
id, copy, target = sys.argv[1:]
images, refusals = [], []
for source in (id, copy):
    try:
        DiffusionPipeline.from_pretrained(source)
    except ValueError as error:
        refusals.append(str(error))
    images.append(draw(DiffusionPipeline.from_pretrained(source, trust_remote_code=True)))
versions = {{module.__name__: str(module.__version__) for module in (diffusers, huggingface_hub, torch)}}
torch.save({{"images": images, "refusals": refusals, "versions": versions}}, target)
"""


def make_environment(folder: Path, version: str) -> Path:
    """A virtual environment with diffusers of this version and torch as it is here; its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        torch_version = importlib.metadata.version("torch").split("+")[0]
        packages = [f"diffusers=={version}", f"torch=={torch_version}", "numpy"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def check(version: str, folder: Path, pipeline) -> bool:
    """Push, export, load and compare; prints what it finds."""
    from loopback_hub import LoopbackHub

    python = make_environment(folder / f"diffusers-{version}", version)
    with LoopbackHub() as hub, tempfile.TemporaryDirectory() as home:
        environment = hub.environment(home) | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        here, there, copy = (Path(home) / name for name in ("here.pt", "there.pt", "copy"))
        subprocess.run([sys.executable, "-c", HERE, pipeline, ID, copy, here], check=True, env=environment)
        subprocess.run([python, "-I", "-c", THERE, ID, copy, there], check=True, env=environment, cwd=home)
        expected, result = torch.load(here), torch.load(there)
    refused = ["trust_remote_code=True" in refusal for refusal in result["refusals"]] == [True, True]
    same = [torch.equal(images, expected) for images in result["images"]]
    spread = expected.std().item()
    print(
        f"{result['versions']}: refused without trust_remote_code: {refused}; images equal, pushed: {same[0]}, "
        f"exported: {same[1]} (std {spread:.3f})"
    )
    return refused and all(same) and spread > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="+", help="of diffusers")
    parser.add_argument("--folder", type=Path, help="where the environments are made, and kept (default: temporary)")
    parser.add_argument("--pipeline", type=Path, default=ROOT / "pretrained" / "fashion-mnist-ve")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))  # for the server
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        results = [check(version, folder, arguments.pipeline) for version in arguments.versions]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
