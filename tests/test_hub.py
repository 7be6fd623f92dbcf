"""Pushing to and pulling from the Hub, by huggingface_hub's own client against a server on this machine."""

import json
import os
import re
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from golden import golden_names, load_golden_pipeline
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from loopback_hub import TOKEN, LoopbackHub
from module_names import module_at, plain
from PIL import Image
from warm_python import run_python

from sde_diffusers import NCSNppUNet2DModel, ScoreSdePipeline, ScoreSdePredictorCorrectorScheduler
from sde_diffusers.cli import main
from sde_diffusers.hub.push import push_model
from sde_diffusers.hub.space import push_space
from sde_diffusers.model_card import GENERATED, model_card

ID = "tester/tiny"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FILES = {
    "README.md",
    "model_index.json",
    "pipeline_score_sde.py",
    "scheduler/scheduler_config.json",
    "scheduler/scheduling_score_sde.py",
    "unet/config.json",
    "unet/unet_ncsnpp.py",
    WEIGHTS,
}


def make_pipeline(seed=0):
    torch.manual_seed(seed)
    unet = NCSNppUNet2DModel(
        sample_size=8, in_channels=1, block_out_channels=(8, 8), layers_per_block=1, init_scale=1.0, num_class_embeds=3
    )
    scheduler = ScoreSdePredictorCorrectorScheduler(sde="ve", sigma_max=10.0, snr=0.1, predictor="ancestral")
    return quiet(ScoreSdePipeline(unet=unet.eval(), scheduler=scheduler))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe):
    generator = torch.Generator().manual_seed(0)
    return quiet(pipe)(batch_size=2, num_inference_steps=3, generator=generator, output_type="pt").images


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def expected(pipe):
    return draw(pipe)


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    """A saved pipeline's folder; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        yield hub
        assert hub.strangers == [] and hub.tokens_at_cdn == []


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the client would have slept between its attempts."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def names(hub, revision="main", id=ID):
    return {plain(path) for path in hub.model(id).files(revision)} - {".gitattributes"}


def front_matter(hub, revision="main"):
    return ModelCard(hub.model(ID).files(revision)["README.md"].decode()).data.to_dict()


# What arrives.


def test_a_push_writes_a_complete_repository(hub, pipe, expected):
    commit = pipe.push_to_hub(
        ID,
        commit_message="First",
        private=True,
        license="apache-2.0",
        datasets=["zalando-datasets/fashion_mnist"],
        tags=["tiny"],
        metrics={"FID": 12.5},
        description="Trained for nothing.",
        samples=Image.new("L", (16, 16), 200),
    )
    repository = hub.model(ID)
    assert repository.private and repository.messages == ["initial commit", "First"]
    assert str(commit) == f"{hub.endpoint}/{ID}/commit/{repository.branches['main']}"
    assert names(hub) == FILES | {"samples.png"}
    card = ModelCard(repository.files()["README.md"].decode())
    data = card.data.to_dict()
    results = data.pop("model-index")
    assert data == {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "license": "apache-2.0",
        "datasets": ["zalando-datasets/fashion_mnist"],
        "tags": ["score-sde", "image-generation", "tiny"],
    }
    (model,) = results
    assert model["name"] == "tiny"
    assert model["results"][0]["dataset"]["type"] == "zalando-datasets/fashion_mnist"
    assert model["results"][0]["metrics"] == [{"type": "fid", "value": 12.5, "name": "FID"}]
    parameters = sum(tensor.numel() for tensor in pipe.unet.state_dict().values())
    for text in (
        "# tiny",
        f"{parameters:,} parameters",
        "VE SDE",
        "8 x 8 images with 1 channel:",
        "0 to 2",
        "Trained for nothing.",
        "![Samples](samples.png)",
        f'ScoreSdePipeline.from_pretrained("{ID}")',
    ):
        assert text in card.text  # fmt: skip
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)


def test_both_ways_to_push_send_the_same(hub, pipe, tmp_path):
    pipe.push_to_hub(ID)
    pipe.save_pretrained(tmp_path / "by_folder", push_to_hub=True)
    pipe.save_pretrained(str(tmp_path / "folder"), push_to_hub=True, repo_id="by_name", private=True)
    assert not hub.model("tester/by_folder").private and hub.model("tester/by_name").private
    first = hub.model(ID).files()
    for id in ("tester/by_folder", "tester/by_name"):
        second = hub.model(id).files()
        assert first.keys() == second.keys() and f'"{id}"' in second["README.md"].decode()
        assert {path for path in first if first[path] != second[path]} == {"README.md"}  # it names the repository


def test_shards_and_variants(hub, pipe, expected):
    pipe.push_to_hub(ID, max_shard_size="20KB")
    shards = {path for path in names(hub) if "-of-" in path}
    assert len(shards) > 1 and names(hub) == (FILES - {WEIGHTS}) | shards | {f"{WEIGHTS}.index.json"}
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)

    other = make_pipeline(seed=1)
    other.push_to_hub(ID, variant="ema")
    assert shards < names(hub)  # another variant leaves them alone
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID, variant="ema")), draw(other))

    pipe.push_to_hub(ID)  # shards of old weights would be loaded instead of the new file
    assert names(hub) == FILES | {"unet/diffusion_pytorch_model.ema.safetensors"}
    hub.requests.clear()
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)
    assert not any("ema" in request for request in hub.requests)  # nor is another variant downloaded


def test_what_others_put_into_a_repository_stays(hub, pipe):
    pipe.push_to_hub(ID)
    own = {"handler.py": b"1\n", "unet/plots.py": b"2\n", "images/teaser.png": b"3\n"}
    older = {"unet/unet_ncsnpp.py": b"4\n", "pipeline_score_sde_01234567.py": b"5\n"}  # modules of earlier versions
    hub.model(ID).commit("main", hub.model(ID).files() | own | older, "by hand")
    make_pipeline(seed=1).push_to_hub(ID)
    assert names(hub) == FILES | own.keys() and not older.keys() & hub.model(ID).files().keys()


def test_no_path_of_this_machine_is_sent(hub, pipe, saved, tmp_path):
    again = ScoreSdePipeline.from_pretrained(saved)
    assert again.unet.config._name_or_path == str(saved / "unet")
    again.push_to_hub(ID)
    assert not [path for path, data in hub.model(ID).files().items() if str(saved).encode() in data]


def test_a_card_for_a_variant_says_so(hub, pipe):
    pipe.push_to_hub(ID, variant="fp16")
    assert f'from_pretrained("{ID}", variant="fp16")' in hub.model(ID).files()["README.md"].decode()


def test_revisions(hub, pipe, expected):
    first = pipe.push_to_hub(ID)
    other = make_pipeline(seed=1)
    other.push_to_hub(ID, revision="second")
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID, revision="second")), draw(other))
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID, revision=first.oid)), expected)
    other.push_to_hub(ID)
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), draw(other))
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID, revision=first.oid)), expected)
    with pytest.raises(OSError, match="Revision Not Found"):
        ScoreSdePipeline.from_pretrained(ID, revision="third")


def test_pull_requests(hub, pipe):
    pipe.push_to_hub(ID)
    commit = make_pipeline(seed=1).push_to_hub(ID, create_pr=True)
    assert commit.pr_url.endswith("discussions/1") and set(hub.model(ID).branches) == {"main", "refs/pr/1"}


def test_nothing_new_is_no_commit(hub, pipe):
    pipe.push_to_hub(ID)
    before = hub.model(ID).branches["main"]
    pipe.push_to_hub(ID)
    assert hub.model(ID).branches["main"] == before


def test_private_repositories_need_a_token(hub, saved, monkeypatch):
    push_model(saved, ID, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError, match="private"):
        ScoreSdePipeline.from_pretrained(ID)
    ScoreSdePipeline.from_pretrained(ID, token=TOKEN)
    hub.requests.clear()
    with pytest.raises(LocalTokenNotFoundError, match="hf auth login"):
        push_model(saved, ID)
    with pytest.raises(HfHubHTTPError, match="401"):
        push_model(saved, "tester/another", token="hf_wrong")
    with pytest.raises(LocalTokenNotFoundError, match="token=True"):
        ScoreSdePipeline.from_pretrained(ID, token=True)
    assert not any("commit" in request for request in hub.requests)


def test_what_is_not_there(hub, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        ScoreSdePipeline.from_pretrained("tester/nothing")
    with pytest.raises(OSError, match="neither a folder nor the id"):
        ScoreSdePipeline.from_pretrained(tmp_path / "no folder")


@pytest.mark.parametrize("name", golden_names("model"))
def test_the_papers_networks_survive_the_hub(hub, name):
    """The recorded models of the paper's code: converted, pushed and pulled, they are what they were, bit for bit."""
    converted = load_golden_pipeline(name.removeprefix("model_"))
    converted.push_to_hub(ID)
    pulled = ScoreSdePipeline.from_pretrained(ID)
    before, after = converted.unet.state_dict(), pulled.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    for ours, theirs in ((converted.unet, pulled.unet), (converted.scheduler, pulled.scheduler)):
        assert public(ours.config) == public(theirs.config)


def public(config):
    return {key: list(v) if isinstance(v, tuple) else v for key, v in config.items() if not key.startswith("_")}


# Cards.


def test_a_card_written_by_hand_stays(hub, pipe):
    pipe.push_to_hub(ID, license="mit", metrics={"FID": 3.0}, datasets=["a/b"])
    card = ModelCard(hub.model(ID).files()["README.md"].decode())
    card.text = "\n# My own words\n"
    api = HfApi()
    api.upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id=ID)
    make_pipeline(seed=1).push_to_hub(ID, tags=["more"], metrics={"FID": 2.0}, datasets=["a/c"])
    card = ModelCard(hub.model(ID).files()["README.md"].decode())
    assert card.text.strip() == "# My own words"
    assert card.data.license == "mit" and card.data.tags[-1] == "more" and card.data.datasets == ["a/c"]
    assert [result.metric_value for result in card.data.eval_results] == [2.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"license": "not a license"},
            "`license` must be such as the Hub has, \"apache-2.0\", but is 'not a license'",
        ),
        ({"tags": [""]}, "`tags`"),
        ({"datasets": ["a b"]}, "`datasets`"),
        ({"samples": "nowhere.png"}, "`samples` nowhere.png cannot be read as a picture"),
        ({"description": "Mine."}, "`description` is for a card that is generated"),
    ],
)
def test_what_a_card_cannot_hold_is_refused(saved, tmp_path, given, message):
    folder = shutil.copytree(saved, tmp_path / "with_card")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nMine.\n")
    with pytest.raises(ValueError, match=message):
        push_model(folder, ID, dry_run=True, **given)


def test_a_generated_card_is_renewed(hub, pipe):
    pipe.push_to_hub(ID, license="mit", description="Old.")
    pipe.push_to_hub(ID, description="New.")
    text = hub.model(ID).files()["README.md"].decode()
    assert "New." in text and "Old." not in text and text.count(GENERATED) == 1
    assert front_matter(hub)["license"] == "mit"


def test_a_folders_own_card_is_sent(hub, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "with_card")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nMine.\n")
    push_model(folder, ID, tags=["more"])
    text = hub.model(ID).files()["README.md"].decode()
    assert "Mine." in text and front_matter(hub)["tags"] == ["score-sde", "image-generation", "more"]
    assert (folder / "README.md").read_text() == "---\nlicense: mit\n---\n\nMine.\n"


def test_a_folders_generated_card_keeps_what_was_written_on_the_hub(hub, saved, tmp_path):
    push_model(saved, ID, license="mit")
    folder = shutil.copytree(saved, tmp_path / "with_card")
    card = ModelCard(hub.model(ID).files()["README.md"].decode())
    assert GENERATED in card.text
    card.data.license = None
    card.data.language = "en"
    card.save(folder / "README.md")
    card = ModelCard("---\nlicense: mit\n---\n# My own words\n")
    hub.model(ID).commit("main", hub.model(ID).files() | {"README.md": str(card).encode()}, "by hand")
    push_model(folder, ID)
    assert "# My own words" in hub.model(ID).files()["README.md"].decode()
    assert front_matter(hub)["license"] == "mit" and front_matter(hub)["language"] == "en"


def test_an_old_card_of_the_cache_is_not_sent(hub, saved, waits):
    push_model(saved, ID)
    push_model(saved, ID)  # reads the card
    hub.model(ID).commit("main", hub.model(ID).files() | {"README.md": b"My own words"}, "by hand")
    hub.fail("(HEAD|GET) .*README.md", times=1000, status=500)
    with pytest.raises(OSError, match="The card of tester/tiny cannot be read: .*500"):
        push_model(saved, ID)
    assert hub.model(ID).files()["README.md"] == b"My own words"


@pytest.mark.parametrize(
    "options, named",
    [
        ({"metrics": {"FID": 1.0}}, "`metrics`"),
        ({"metrics": {"FID": float("nan")}, "datasets": ["a/b"]}, "`metrics`"),
        ({"metrics": ["FID"], "datasets": ["a/b"]}, r"`metrics` must be \{name: value\}, but is \['FID'\]"),
        ({"datasets": "a/b"}, "`datasets`.*'a/b'"),
        ({"tags": "garments"}, "`tags`.*'garments'"),
        ({"tags": [3]}, r"`tags` must be a list of strings, but is \[3\]"),
        ({"license": 3}, "`license` must be a string, but is 3"),
        ({"description": 3}, "`description` must be a string, but is 3"),
        ({"repo_id": None}, "`repo_id` must be owner/name or name, but is None"),
        ({"revision": 3}, "`revision` must be the name of a branch"),
        ({"max_bytes": float("nan")}, "`max_bytes` must be a number of at least 0, but is nan"),
        ({"max_bytes": "1GB"}, "`max_bytes` must be a number of at least 0, but is '1GB'"),
        ({"samples": Image.new("F", (2, 2))}, "`samples` must be a picture that a PNG file can hold.* mode F"),
        ({"samples": Image.new("CMYK", (2, 2))}, "`samples` must be a picture.* mode CMYK"),
        ({"folder": ""}, "`folder` must be the path of a folder, but is ''"),
    ],
)
def test_metadata_is_checked(hub, saved, options, named):
    with pytest.raises(ValueError, match=named):
        push_model(**{"folder": saved, "repo_id": ID, **options})
    assert hub.requests == []


def test_a_card_shows_python_whatever_a_class_is_called(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "quoted")
    config = json.loads((folder / "unet" / "config.json").read_text())
    name = 'the "best" \\ größte'
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "class_names": [name]}))
    (call,) = re.findall(r"output = pipe\((.*)\)  #", model_card(folder, ID).text)
    assert eval(f"dict({call})") == {"batch_size": 4, "class_labels": name}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo_id": "a/b/c"}, "`repo_id` must be owner/name or name, but is 'a/b/c'"),
        ({"safe_serialization": False}, "`safe_serialization` must be True"),
        ({"privat": True}, "save_pretrained can't take the argument 'privat': did you mean 'private'"),
        ({"safe_serialisation": False, "push_to_hub": False}, "argument 'safe_serialisation': did you mean 'safe_ser"),
        ({"license": 3}, "`license` must be a string"),
    ],
)
def test_what_cannot_be_pushed_is_not_saved_first(hub, pipe, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.save_pretrained(tmp_path / "new", **{"push_to_hub": True, **options})
    if options.get("push_to_hub", True):
        with pytest.raises(ValueError, match=message.replace("save_pretrained", "push_to_hub")):
            pipe.push_to_hub(**{"repo_id": ID, **options})
    assert not (tmp_path / "new").exists() and hub.requests == []


def test_metadata_that_cannot_be_read_is_refused(hub, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "with_card")
    (folder / "README.md").write_text("---\nlicense: mit: or not\n---\n")
    with pytest.raises(ValueError, match="metadata of .*README.md"):
        push_model(folder, ID)
    assert hub.requests == []


# Before anything is sent.


def test_a_dry_run_asks_nobody(hub, pipe, saved):
    sizes = pipe.push_to_hub(ID, dry_run=True)
    assert set(map(plain, sizes)) == FILES and sizes[WEIGHTS] == (saved / WEIGHTS).stat().st_size
    assert push_model(saved, ID, dry_run=True) == sizes
    assert hub.requests == []


def test_large_pushes_are_refused(hub, saved):
    with pytest.raises(ValueError, match=r"7 files.*largest: .*`max_bytes`"):
        push_model(saved, ID, max_bytes=1000)
    assert hub.requests == []


@pytest.mark.parametrize("missing", ["model_index.json", "pipeline_score_sde.py", "unet/unet_ncsnpp.py", WEIGHTS])
def test_incomplete_folders_are_refused(hub, pipe, tmp_path, missing):
    pipe.save_pretrained(tmp_path)
    module_at(tmp_path, missing).unlink()
    with pytest.raises(ValueError, match="missing"):
        push_model(tmp_path, ID)
    assert hub.requests == []


def test_missing_shards_are_refused(hub, pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = max((tmp_path / "unet").glob("*-of-*"))
    shard.unlink()
    with pytest.raises(ValueError, match=f"unet/{shard.name} missing"):
        push_model(tmp_path, ID)
    assert hub.requests == []


def test_pickles_are_refused(hub, pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "unet" / "old.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="unet/old.bin"):
        push_model(tmp_path, ID)
    with pytest.raises(ValueError, match="`safe_serialization`"):
        pipe.push_to_hub(ID, safe_serialization=False)
    assert hub.requests == []


def test_hidden_files_stay_here(hub, pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    for name in (".cache/secret", ".env", "unet/__pycache__/x.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    push_model(tmp_path, ID)
    assert names(hub) == FILES


# No code of a repository is run where the package is installed.


@pytest.mark.parametrize("cached", [False, True], ids=["fresh", "code in the cache"])
def test_the_package_runs_no_code_of_a_repository(hub, pipe, expected, tmp_path, cached):
    pipe.push_to_hub(ID)
    trace = tmp_path / "trace"
    poison = f"open({str(trace)!r}, 'w').close()\nraise SystemExit('this code was run')\n".encode()
    files = dict(hub.model(ID).files())
    poisoned = [path for path in files if path.endswith(".py")]
    assert len(poisoned) == 3
    files |= dict.fromkeys([*poisoned, "unet/__init__.py", "scheduler/__init__.py", "sde_diffusers.py"], poison)
    hub.model(ID).commit("main", files, "poison")
    if cached:
        assert list(Path(snapshot_download(ID)).rglob("unet_ncsnpp_*.py"))
    hub.requests.clear()
    loaded = ScoreSdePipeline.from_pretrained(ID)
    assert not trace.exists() and not any(request.endswith(".py") for request in hub.requests)
    assert type(loaded) is ScoreSdePipeline and type(loaded.unet) is NCSNppUNet2DModel
    assert torch.equal(draw(loaded), expected)


def test_unknown_classes_of_a_repository_are_not_looked_for_in_it(hub, pipe, tmp_path):
    pipe.push_to_hub(ID)
    trace = tmp_path / "trace"
    files = dict(hub.model(ID).files())
    index = json.loads(files["model_index.json"])
    index["unet"] = ["unet_evil", "EvilModel"]
    files |= {
        "model_index.json": json.dumps(index).encode(),
        "unet/unet_evil.py": f"open({str(trace)!r}, 'w').close()\n".encode(),
    }
    hub.model(ID).commit("main", files, "evil")
    snapshot_download(ID)
    with pytest.raises(Exception, match="trust_remote_code|unet_evil"):
        ScoreSdePipeline.from_pretrained(ID)
    assert not trace.exists()


# Without the package.

WITHOUT_THE_PACKAGE = """
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

id, folder = sys.argv[1], Path(sys.argv[2])
try:
    DiffusionPipeline.from_pretrained(id)
except ValueError as error:
    message = str(error)
pipe = DiffusionPipeline.from_pretrained(id, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
images = pipe(batch_size=2, num_inference_steps=3, generator=generator, output_type="pt").images
pipe.push_to_hub("tester/again", license="mit")
pipe.save_pretrained(folder / "again", push_to_hub=True, repo_id="tester/again_saved")
assert not any(name.split(".")[0] == "sde_diffusers" for name in sys.modules)
torch.save({"message": message, "images": images}, folder / "result.pt")
"""


def test_without_the_package(hub, pipe, expected, tmp_path):
    """diffusers alone pulls and draws the same images, bit for bit, and pushes a complete repository again."""
    pipe.push_to_hub(ID)
    environment = hub.environment(tmp_path / "other_home") | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    arguments = ["-c", WITHOUT_THE_PACKAGE, ID, tmp_path]
    done = run_python(arguments, environment, tmp_path, without=["sde_diffusers"])
    assert done.returncode == 0, done.stderr
    result = torch.load(tmp_path / "result.pt")
    assert "trust_remote_code=True" in result["message"]
    assert torch.equal(result["images"], expected)
    before = hub.model(ID).files()
    for id in ("tester/again", "tester/again_saved"):
        again = hub.model(id).files()
        assert again.keys() == before.keys()
        assert {path for path in before if again[path] != before[path]} == {"README.md"}
        assert torch.equal(draw(ScoreSdePipeline.from_pretrained(id)), expected)


# When things go wrong.


@pytest.fixture
def nobody(monkeypatch):
    """An address where nothing listens: the port is taken, so that no other process can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield


def test_an_unreachable_hub(hub, pipe, nobody, waits):
    for action in (lambda: pipe.push_to_hub(ID), lambda: ScoreSdePipeline.from_pretrained(ID)):
        with pytest.raises(OSError, match="cannot be reached"):
            action()
    assert waits == []  # no retries


def test_an_earlier_download_serves_without_the_hub(hub, saved, expected, waits, monkeypatch):
    push_model(saved, ID)
    ScoreSdePipeline.from_pretrained(ID)
    hub.fail(".", times=1000, cut=True)
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)
    with pytest.raises(OSError, match="offline"):
        ScoreSdePipeline.from_pretrained("tester/other")
    with pytest.raises(OSError, match="offline"):
        push_model(saved, ID)
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID, local_files_only=True)), expected)


def test_a_hub_that_does_not_answer(hub, pipe, monkeypatch):
    monkeypatch.setattr("sde_diffusers.hub.connection.PATIENCE", 0.2)
    hub.fail("GET /api/models", times=10, wait=2.0, cut=True)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        pipe.push_to_hub(ID)
    assert not hub.repositories


PUSH_TROUBLE = {
    "500": ("PUT /lfs", {"status": 500}),
    "429": ("preupload", {"status": 429, "headers": {"Retry-After": "7"}}),
    "cut upload": ("PUT /lfs", {"cut": True}),
    "cut batch": ("objects/batch", {"cut": True}),
}


@pytest.mark.parametrize("trouble", PUSH_TROUBLE)
def test_pushes_are_retried(hub, saved, expected, waits, trouble):
    pattern, how = PUSH_TROUBLE[trouble]
    hub.fail(pattern, times=2, **how)
    push_model(saved, ID)
    assert names(hub) == FILES and len(waits) >= 2 and (trouble != "429" or min(waits) >= 7)
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)


@pytest.mark.parametrize(
    "pattern, how",
    [
        ("PUT /lfs", {"status": 500}),
        ("PUT /lfs", {"cut": True}),
        ("preupload", {"status": 500}),
        ("repos/create", {"status": 429, "headers": {"Retry-After": "7"}}),
        ("/commit/", {"status": 500}),
        ("/commit/", {"cut": True}),
    ],
    ids=str,
)
def test_a_failed_push_changes_nothing(hub, saved, expected, waits, pattern, how):
    push_model(saved, ID)
    before = dict(hub.model(ID).branches)
    hub.fail(pattern, times=1000, **how)
    with pytest.raises((OSError, RuntimeError), match="500|429|failed|uploading"):
        make_pipeline(seed=1).push_to_hub(ID)
    hub.faults.clear()
    assert hub.model(ID).branches == before
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)


PULL_TROUBLE = {
    "half a file": ("GET /cdn", {"half": True}),
    "half a configuration": ("GET /.*config.json", {"half": True}),
    "429": ("GET /cdn", {"status": 429, "headers": {"Retry-After": "7"}}),
}


@pytest.mark.parametrize("trouble", PULL_TROUBLE)
def test_pulls_are_retried(hub, saved, expected, waits, trouble):
    push_model(saved, ID)
    pattern, how = PULL_TROUBLE[trouble]
    hub.fail(pattern, times=2, **how)
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)
    if trouble == "half a file":
        assert hub.ranges  # it went on where it had been cut
    assert max(waits) >= (7 if trouble == "429" else 1)


@pytest.mark.parametrize(
    "pattern, how",
    [
        ("GET /cdn", {"status": 500}),
        ("GET /cdn", {"cut": True}),
        ("GET /cdn", {"half": True}),
        ("GET /.*config.json", {"half": True}),
        ("HEAD .*safetensors", {"cut": True}),
        ("GET /api/models/.*/tree", {"half": True}),
        ("GET /api/models/", {"status": 500}),
    ],
    ids=str,
)
def test_a_failed_pull_leaves_nothing_to_trip_over(hub, saved, expected, waits, pattern, how):
    """It fails, it fails again without the Hub, and it works as soon as the Hub does."""
    push_model(saved, ID)
    hub.fail(pattern, times=1000, **how)
    with pytest.raises(OSError):
        ScoreSdePipeline.from_pretrained(ID)
    with pytest.raises(OSError):
        ScoreSdePipeline.from_pretrained(ID, local_files_only=True)
    hub.faults.clear()
    assert torch.equal(draw(ScoreSdePipeline.from_pretrained(ID)), expected)


# Spaces.


@pytest.fixture
def space(tmp_path):
    folder = tmp_path / "space"
    folder.mkdir()
    (folder / "app.py").write_text("import os\nprint(os.environ['MODEL_ID'])\n")
    (folder / "requirements.txt").write_text("gradio\n")
    (folder / "README.md").write_text("---\ntitle: Tiny\nsdk: gradio\napp_file: app.py\n---\n")
    return folder


def test_a_space_shows_the_chosen_model(hub, space):
    assert set(push_space(space, "tester/space", ID, dry_run=True)) == {"app.py", "requirements.txt", "README.md"}
    assert hub.requests == []
    push_space(space, "tester/space", ID, private=True)
    repository = hub.repositories["spaces", "tester/space"]
    assert repository.variables == {"MODEL_ID": ID} and repository.private and repository.sdk == "gradio"
    assert repository.files()["app.py"] == (space / "app.py").read_bytes()
    push_space(space, "tester/space", "tester/other")
    assert repository.variables == {"MODEL_ID": "tester/other"}


def test_what_is_no_space_is_refused(hub, space):
    with pytest.raises(ValueError, match="`model_id`.*'runs/demo/pipeline'"):
        push_space(space, "tester/space", "runs/demo/pipeline")
    (space / "README.md").write_text("---\nsdk: docker\n---\n")
    with pytest.raises(ValueError, match="docker"):
        push_space(space, "tester/space", ID)
    (space / "app.py").unlink()
    with pytest.raises(ValueError, match="app.py"):
        push_space(space, "tester/space", ID)
    with pytest.raises(ValueError, match="`folder`"):
        push_space(os.devnull, "tester/space", ID)
    assert hub.requests == []


# What is to be private.


def push_by_command(pipe, folder, space, id):
    status = main(["push", str(folder), id, "--private"])
    if status:
        raise ValueError("`private` is True, but tester/tiny is a public repository, says the command")


PRIVATE_PUSHES = {
    "push_to_hub": lambda pipe, folder, space, id: pipe.push_to_hub(id, private=True),
    "push_model": lambda pipe, folder, space, id: push_model(folder, id, private=True, create_pr=True),
    "own name": lambda pipe, folder, space, id: push_model(folder, id.split("/")[1], private=True, revision="trial"),
    "save_pretrained": lambda pipe, folder, space, id: pipe.save_pretrained(
        folder, push_to_hub=True, repo_id=id, private=True
    ),
    "command": push_by_command,
    "space": lambda pipe, folder, space, id: push_space(space, id, "tester/model", private=True),
}


@pytest.mark.parametrize("push", PRIVATE_PUSHES.values(), ids=PRIVATE_PUSHES)
def test_a_public_repository_gets_nothing_that_is_private(hub, pipe, space, tmp_path, push, request):
    pipe.save_pretrained(tmp_path / "tiny")
    kind = "spaces" if "space" in request.node.callspec.id else "models"
    repository = hub.create(ID, kind, private=False)
    before = dict(repository.files()), list(repository.messages), dict(repository.branches)
    hub.requests.clear()
    with pytest.raises(ValueError, match=f"`private` is True, but {ID} is a public repository"):
        push(pipe, tmp_path / "tiny", space, ID)
    assert (dict(repository.files()), list(repository.messages), dict(repository.branches)) == before
    assert not [request for request in hub.requests if not request.startswith("GET ")]
    repository.private = True
    push(pipe, tmp_path / "tiny", space, ID)
    assert len(repository.messages) > len(before[1]) and repository.private


def test_what_the_hub_does_not_say_is_not_taken_for_private(hub, saved, waits):
    """Without an answer to the question whether there is such a repository nothing is sent."""
    hub.create(ID)
    hub.fail(f"GET /api/models/{ID}", times=1000, status=500)
    with pytest.raises(OSError):
        push_model(saved, ID, private=True)
    assert not [request for request in hub.requests if not request.startswith("GET ")]


def test_a_network_alone_is_sent_by_diffusers(pipe, tmp_path, monkeypatch):
    """To the repository that is named, or one of the folder's name; its client knows no server on this machine."""
    asked = []

    def create_repo(repo_id, **options):
        asked.append(repo_id)
        raise ConnectionError

    monkeypatch.setattr("diffusers.models.modeling_utils.create_repo", create_repo)
    for options in ({"repo_id": ID}, {}):
        with pytest.raises(ConnectionError):
            pipe.unet.save_pretrained(tmp_path / "net", push_to_hub=True, **options)
    assert asked == [ID, "net"]
