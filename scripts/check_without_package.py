"""Check that a pushed model loads where only diffusers and torch are installed, and draws the same images:

    python scripts/check_without_package.py 0.42.1 0.38.0 [--folder FOLDER] [--pipeline FOLDER]

For each version of diffusers a fresh virtual environment is made (with pip, from the package index). A pipeline is
pushed from here to a Hub on this machine, pulled there with `trust_remote_code=True`, and sampled in both places with
the same seed; without `trust_remote_code` the error must be diffusers' own. The exit status says whether all of this
held.
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
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
images = pipe(batch_size=4, num_inference_steps=10, generator=generator, output_type="pt").images
"""
HERE = f"""
import sys, torch
from sde_diffusers import ScoreSdePipeline

folder, id, target = sys.argv[1:]
pipe = ScoreSdePipeline.from_pretrained(folder)
pipe.push_to_hub(id)
{DRAW}
torch.save(images, target)
"""
THERE = f"""
import importlib.util, sys
assert importlib.util.find_spec("sde_diffusers") is None
import diffusers, huggingface_hub, torch
from diffusers import DiffusionPipeline

id, target = sys.argv[1:]
refusal = None
try:
    DiffusionPipeline.from_pretrained(id)
except ValueError as error:
    refusal = str(error)
pipe = DiffusionPipeline.from_pretrained(id, trust_remote_code=True)
{DRAW}
versions = {{module.__name__: str(module.__version__) for module in (diffusers, huggingface_hub, torch)}}
torch.save({{"images": images, "refusal": refusal, "versions": versions}}, target)
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
    """Push, pull and compare; prints what it finds."""
    from loopback_hub import LoopbackHub

    python = make_environment(folder / f"diffusers-{version}", version)
    with LoopbackHub() as hub, tempfile.TemporaryDirectory() as home:
        environment = hub.environment(home) | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        here, there = Path(home) / "here.pt", Path(home) / "there.pt"
        subprocess.run([sys.executable, "-c", HERE, pipeline, ID, here], check=True, env=environment)
        subprocess.run([python, "-I", "-c", THERE, ID, there], check=True, env=environment, cwd=home)
        expected, result = torch.load(here), torch.load(there)
    refused = "trust_remote_code=True" in (result["refusal"] or "")
    same = torch.equal(result["images"], expected)
    spread = result["images"].std().item()
    print(
        f"{result['versions']}: refused without trust_remote_code: {refused}; images equal: {same} (std {spread:.3f})"
    )
    return refused and same and spread > 0


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
