"""Saved pipelines carry code that works where this package is not installed, and that is not run where it is."""

import ast
import gc
import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from module_names import plain
from warm_python import run_python

import sde_diffusers
from sde_diffusers import (
    NCSNppUNet2DModel,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
    ScoreSdeProbabilityFlowScheduler,
    ScoreSdeRestorationPipeline,
)
from sde_diffusers.saved_folders.single_file import RUN_ONCE, source_of
from sde_diffusers.schedulers.scheduling_score_sde import ScoreSdeScheduler

PACKAGE = Path(sde_diffusers.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
SAMPLERS = [
    cls for cls in ScoreSdePredictorCorrectorScheduler._get_compatibles() if cls.__module__.startswith("sde_diffusers")
]
SWAPPED = [cls for cls in SAMPLERS if not cls.of_consistency_models]  # which refuse other networks, and are refused
CLASSES = [ScoreSdePipeline, ScoreSdeRestorationPipeline, NCSNppUNet2DModel, *SAMPLERS]


def pipeline(unet, scheduler):
    pipe = ScoreSdePipeline(unet=unet.eval(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_ours():
    torch.manual_seed(0)
    unet = NCSNppUNet2DModel(
        sample_size=8, in_channels=1, block_out_channels=(8, 8), layers_per_block=1, init_scale=1.0, num_class_embeds=3
    )
    scheduler = ScoreSdePredictorCorrectorScheduler(sde="ve", sigma_max=10.0, snr=0.1, predictor="ancestral")
    return pipeline(unet, scheduler)


def make_diffusers():
    """With diffusers' own network: only the pipeline and the scheduler need their code."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="vp_discrete", trained_betas=[0.1, 0.2, 0.3, 0.4])
    return pipeline(unet, scheduler)


def draw(pipe):
    return pipe(
        batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images


def text_files(folder):
    """Relative path -> content of all Python and JSON files."""
    paths = [path for path in Path(folder).rglob("*") if path.suffix in (".py", ".json")]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


# The package as the generator's material.


def top_level_names(tree):
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))


def test_top_level_names_are_unique():
    """Modules are joined into one file: nothing may define a name that another one defines, or imports."""
    defined, imported = {}, {}
    for path in SOURCES:
        if path.name == "__init__.py":
            continue
        tree = ast.parse(path.read_text())
        for name in top_level_names(tree):
            assert defined.setdefault(name, path) == path, f"{name} is defined in {path} and {defined[name]}"
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    origin = (getattr(node, "module", None), alias.name)
                    name = alias.asname or alias.name
                    assert imported.setdefault(name, origin) == origin, f"{name} is imported as two things"
    for name, (module, original) in imported.items():
        if name in defined:
            assert module.startswith("sde_diffusers") and original == name, f"{name} is imported and defined"


def test_internal_imports_have_one_form():
    """`from sde_diffusers.x import Name`, at the top level and under its own name: what the generator replaces.

    The commands, which no class needs, import within functions: help is there before torch could be.
    """
    for path in SOURCES:
        if path.name == "__init__.py":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == "sde_diffusers"):
                assert node in tree.body or path.parent.name == "commands", f"{path}:{node.lineno}"
                assert node.level == 0 and "." in node.module, f"{path}:{node.lineno}"
                assert all(alias.asname is None and alias.name != "*" for alias in node.names), f"{path}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("sde_diffusers") for alias in node.names), f"{path}:{node.lineno}"


# The generated text.


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_generated_modules_are_self_contained(cls):
    text = source_of(cls)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module]
        assert not any(name.split(".")[0] == "sde_diffusers" for name in names)
    names = list(top_level_names(tree))
    assert len(names) == len(set(names)) and cls.__name__ in names
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    base = "SchedulerMixin" if issubclass(cls, ScoreSdeScheduler) else "ModelMixin"
    assert cls is ScoreSdePipeline or base in imported  # diffusers' loader looks for it beside the class
    assert source_of(cls) == text  # no order left to chance


def test_a_schedulers_module_holds_all_samplers():
    assert len(SAMPLERS) >= 2
    for cls in SAMPLERS:
        names = set(top_level_names(ast.parse(source_of(cls))))
        assert {other.__name__ for other in SAMPLERS} <= names


def test_samplers_of_other_code_stay_outside():
    """A user's own sampler is compatible too, but no part of what the package's samplers are saved with."""
    before = source_of(ScoreSdePredictorCorrectorScheduler)

    class MyScheduler(ScoreSdeScheduler):
        pass

    assert MyScheduler in ScoreSdePredictorCorrectorScheduler._get_compatibles()
    assert source_of(ScoreSdePredictorCorrectorScheduler) == before
    del MyScheduler
    gc.collect()  # classes are cyclic garbage, and subclasses until they are collected


def test_foreign_classes_are_refused():
    with pytest.raises(ValueError, match="`cls`"):
        source_of(UNet2DModel)


# A saved folder.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Both pipelines' folders, what a process without the package made of them, and the images drawn here."""
    root = tmp_path_factory.mktemp("saved")
    expected = {}
    for name, make in (("ours", make_ours), ("diffusers", make_diffusers)):
        make().save_pretrained(root / name)
        loaded = ScoreSdePipeline.from_pretrained(root / name)
        loaded.set_progress_bar_config(disable=True)
        expected[name] = draw(loaded)
        for cls in SWAPPED:
            loaded.scheduler = cls.from_config(loaded.scheduler.config)
            expected[f"{name} {cls.__name__}"] = draw(loaded)
    script = root / "without_the_package.py"
    script.write_text(WITHOUT_THE_PACKAGE)
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(root / "modules"),
        "HF_HOME": str(root / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    done = run_python([script, root], environment, root, without=["sde_diffusers"])
    assert done.returncode == 0, done.stderr
    return root, torch.load(root / "results.pt"), expected


WITHOUT_THE_PACKAGE = """
import importlib.util
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

root = Path(sys.argv[1])
results = {"images": {}, "compatibles": {}, "modules": {}}

for path in [*root.glob("*/*.py"), *root.glob("*/*/*.py")]:  # each on its own, before diffusers copies it anywhere
    spec = importlib.util.spec_from_file_location(f"alone_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    results["modules"][str(path.relative_to(root))] = sorted(vars(module))

def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(batch_size=2, num_inference_steps=3, generator=generator, output_type="pt").images

for name in ("ours", "diffusers"):
    try:
        DiffusionPipeline.from_pretrained(root / name)
    except ValueError as error:
        results[f"{name} without trust"] = str(error)
    pipe = DiffusionPipeline.from_pretrained(root / name, trust_remote_code=True)
    results["images"][name] = draw(pipe)
    pipe.save_pretrained(root / f"{name} again")
    again = DiffusionPipeline.from_pretrained(root / f"{name} again", trust_remote_code=True)
    results["images"][f"{name} again"] = draw(again)
    # diffusers ran the modules once more, in the same namespaces: the first pipeline must not mind
    x = torch.zeros(1, pipe.unet.config.in_channels, 8, 8)
    results[f"{name} score"] = pipe.score(x, 0.5)
    results["compatibles"][name] = sorted(cls.__name__ for cls in pipe.scheduler.compatibles)
    for cls in pipe.scheduler.compatibles:
        if cls.of_consistency_models:
            continue
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
        results["images"][f"{name} {cls.__name__}"] = draw(pipe)
    # a scheduler swapped there is saved with its code, too
    pipe.save_pretrained(root / f"{name} swapped")
    swapped = DiffusionPipeline.from_pretrained(root / f"{name} swapped", trust_remote_code=True)
    assert type(swapped.scheduler).__name__ == type(pipe.scheduler).__name__

assert not any(name.split(".")[0] == "sde_diffusers" for name in sys.modules)
torch.save(results, root / "results.pt")
"""


def test_modules_import_alone(saved):
    _, results, _ = saved
    modules = {plain(path): names for path, names in results["modules"].items()}
    assert "ScoreSdePipeline" in modules["ours/pipeline_score_sde.py"]
    assert "NCSNppUNet2DModel" in modules["ours/unet/unet_ncsnpp.py"]
    assert "ScoreSdeProbabilityFlowScheduler" in modules["ours/scheduler/scheduling_score_sde.py"]
    assert not any(path.startswith("diffusers/unet") for path in modules)


@pytest.mark.parametrize("name", ["ours", "diffusers"])
def test_images_are_the_same_without_the_package(saved, name):
    """Bit for bit, from both loads of the same file, and after another round of saving there."""
    _, results, expected = saved
    assert torch.equal(results["images"][name], expected[name])
    assert torch.equal(results["images"][f"{name} again"], expected[name])
    assert expected[name].std() > 0.01  # and something to compare


@pytest.mark.parametrize("name", ["ours", "diffusers"])
def test_samplers_swap_without_the_package(saved, name):
    _, results, expected = saved
    assert results["compatibles"][name] == sorted(cls.__name__ for cls in SAMPLERS)
    for cls in SWAPPED:
        sampler = f"{name} {cls.__name__}"
        assert torch.equal(results["images"][sampler], expected[sampler]), sampler


@pytest.mark.parametrize("name", ["ours", "diffusers"])
def test_scores_without_the_package(saved, name):
    root, results, _ = saved
    pipe = ScoreSdePipeline.from_pretrained(root / name)
    x = torch.zeros(1, pipe.unet.config.in_channels, 8, 8)
    with torch.no_grad():
        assert torch.equal(pipe.score(x, 0.5), results[f"{name} score"])


@pytest.mark.parametrize("name", ["ours", "diffusers"])
def test_without_trust_the_error_is_diffusers_own(saved, name):
    assert "trust_remote_code" in saved[1][f"{name} without trust"]


@pytest.mark.parametrize("name", ["ours", "diffusers"])
def test_saving_again_without_the_package_changes_nothing(saved, name):
    root = saved[0]
    before, after = text_files(root / name), text_files(root / f"{name} again")
    for files in (before, after):
        for path in files:
            if path.endswith(".json"):
                files[path] = {key: value for key, value in json.loads(files[path]).items() if key != "_name_or_path"}
    assert before == after


def test_index_names_modules_and_classes(saved):
    root = saved[0]
    index = json.loads((root / "ours" / "model_index.json").read_text())
    named = {key: (plain(f"{value[0]}.py"), value[1]) for key, value in index.items() if isinstance(value, list)}
    assert named["_class_name"] == ("pipeline_score_sde.py", "ScoreSdePipeline")
    assert named["unet"] == ("unet_ncsnpp.py", "NCSNppUNet2DModel")
    assert named["scheduler"] == ("scheduling_score_sde.py", "ScoreSdePredictorCorrectorScheduler")
    assert json.loads((root / "diffusers" / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]
    # one module for each component is all that diffusers downloads
    assert sorted(plain(path) for path in text_files(root / "ours") if path.endswith(".py")) == [
        "pipeline_score_sde.py",
        "scheduler/scheduling_score_sde.py",
        "unet/unet_ncsnpp.py",
    ]
    assert str(root) not in "".join(text_files(root / "ours").values())  # nothing of this machine


OTHER_CODE = """

def expand_like(*arguments):
    raise LookupError("this is other code")
"""


def with_other_code(folder):
    """Append to a saved folder's modules, which then have other names."""
    index = json.loads((folder / "model_index.json").read_text())
    for key in ("_class_name", "unet", "scheduler"):
        path = folder / ("" if key == "_class_name" else key) / f"{index[key][0]}.py"
        text = path.read_text().removesuffix(RUN_ONCE) + OTHER_CODE + RUN_ONCE
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        index[key][0] = re.sub("_[0-9a-f]{8}$", f"_{digest}", index[key][0])
        path.rename(path.with_name(f"{index[key][0]}.py")).write_text(text)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def computes(pipe):
    """The images of a pipeline, or what its code says."""
    pipe.set_progress_bar_config(disable=True)
    try:
        return draw(pipe).tolist()
    except LookupError as error:
        return str(error)


READ_PICKLES = """
import json, pickle, sys
from pathlib import Path
from test_single_file import computes

print(json.dumps([computes(pickle.loads(Path(file).read_bytes())) for file in sys.argv[1:]]))
"""


def test_folders_with_different_code_in_one_process(saved, tmp_path, monkeypatch):
    """Each pipeline computes with its own, is saved with it, and pickled, also to a process that is started afresh."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules"), *sys.path])  # before those of earlier tests
    ours, other = saved[0] / "ours", with_other_code(shutil.copytree(saved[0] / "ours", tmp_path / "other"))
    first, second, again = (DiffusionPipeline.from_pretrained(f, trust_remote_code=True) for f in (ours, other, ours))
    assert type(first) is type(again) and type(first.unet) is type(again.unet) is not type(second.unet)
    pipes, expected = (
        [first, second, again],
        [saved[2]["ours"].tolist(), "this is other code", saved[2]["ours"].tolist()],
    )
    assert [computes(pipe) for pipe in pipes] == expected
    assert [computes(pickle.loads(pickle.dumps(pipe))) for pipe in pipes] == expected
    files = [tmp_path / f"{number}.pickle" for number in range(len(pipes))]
    for file, pipe in zip(files, pipes, strict=True):
        file.write_bytes(pickle.dumps(pipe))
    paths = os.pathsep.join([str(tmp_path / "modules"), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = run_python(["-c", READ_PICKLES, *files], environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
    for pipe, folder in {first: ours, second: other}.items():
        pipe.save_pretrained(tmp_path / "again")
        saved_code, code = (
            {path: text for path, text in text_files(f).items() if path.endswith(".py")}
            for f in (tmp_path / "again", folder)
        )
        assert saved_code == code


def test_the_package_runs_no_code_of_a_folder(saved, tmp_path):
    """Modules that would leave a trace if they ran: the classes are the package's own."""
    folder, trace = tmp_path / "poisoned", tmp_path / "trace"
    shutil.copytree(saved[0] / "ours", folder)
    poisoned = list(folder.rglob("*.py"))
    assert len(poisoned) == 3
    for path in poisoned:
        path.write_text(f"open({str(trace)!r}, 'w').close()\nraise SystemExit('this code was run')\n")
    pipe = ScoreSdePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert not trace.exists()
    assert type(pipe) is ScoreSdePipeline and type(pipe.unet) is NCSNppUNet2DModel
    assert type(pipe.scheduler) is ScoreSdePredictorCorrectorScheduler
    assert torch.equal(draw(pipe), saved[2]["ours"])
    for path in poisoned:  # nor is it needed
        path.unlink()
    assert torch.equal(draw(pipe), saved[2]["ours"])
    ScoreSdePipeline.from_pretrained(folder)


def test_resaving_with_the_package_repairs_the_code(saved, tmp_path):
    """The installed package writes its own sources, whatever lay in the folder that was loaded."""
    ScoreSdePipeline.from_pretrained(saved[0] / "ours").save_pretrained(tmp_path)
    before, after = text_files(saved[0] / "ours"), text_files(tmp_path)
    assert {path: text for path, text in before.items() if path.endswith(".py")} == {
        path: text for path, text in after.items() if path.endswith(".py")
    }
    assert json.loads(before["model_index.json"]) == json.loads(after["model_index.json"])
