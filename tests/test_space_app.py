"""The app of space_app, as its users meet it: through gradio_client, one app for all tests."""

import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from sde_diffusers import (
    NCSNppUNet2DModel,
    ScoreSdeConsistencyScheduler,
    ScoreSdePipeline,
    ScoreSdePredictorCorrectorScheduler,
)
from sde_diffusers.images import PixelFormat

gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[space]'")
gradio_client = pytest.importorskip("gradio_client")

pytestmark = pytest.mark.xdist_group("app")  # one process opens the pages and loads the models

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "space_app"))
import app as space_app  # noqa: E402
import bounded_work  # noqa: E402
import door  # noqa: E402
import make_model_data  # noqa: E402
import pictures  # noqa: E402
import served_model  # noqa: E402
import tab_generate  # noqa: E402
import tab_interpolate  # noqa: E402
import tab_one_step  # noqa: E402
from pictures import mask_editor, open_picture, read_picture, visible_states  # noqa: E402
from tab_likelihood import TOLERANCE, likelihood, scores  # noqa: E402

SAMPLER = served_model.DEFAULT_SAMPLER
OPTIMIZE = ScoreSdePipeline.optimize


@pytest.fixture(scope="module", autouse=True)
def optimized_without_trials():
    """Trials take seconds, whenever another model is read: here all networks are asked in the same way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreSdePipeline, "optimize", lambda pipe, **how: OPTIMIZE(pipe, **how, layout="channels_last"))
        yield


def test_a_card_that_cannot_be_read_is_none(tmp_path):
    assert served_model.card_header(str(tmp_path)) == {}
    for text, header in (("---\nabout: größer\n---\n", {"about": "größer"}), ("---\na: b: c\n---\n", {})):
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        assert served_model.card_header(str(tmp_path)) == header


@pytest.fixture(scope="module")
def app(optimized_without_trials):
    if not served_model.SHIPPED.is_dir():
        pytest.skip("pretrained/fashion-mnist-ve is not here")
    return space_app.build_app(None)


@pytest.fixture(scope="module")
def url(app):
    _, address, _ = space_app.launch(app, prevent_thread_lock=True, quiet=True)
    yield address
    app.close(verbose=False)


@pytest.fixture
def events(app):
    """{name: function of the app}"""
    return {function.api_name: function for function in app.fns.values()}


@pytest.fixture(scope="module")
def client(url, tmp_path_factory):
    return new_client(url, tmp_path_factory.mktemp("downloads"))


def new_client(url, folder):
    return gradio_client.Client(url, verbose=False, download_files=str(folder), analytics_enabled=False)


async def ask(http, event, data, session=None, seen=None):
    """What a browser would: the data of an event's last message, or its error. `seen` takes the messages' kinds."""
    session = session or uuid.uuid4().hex
    joined = await http.post("queue/join", json={"data": data, "fn_index": event._id, "session_hash": session})
    if joined.status_code != 200:
        return joined.json()["detail"]
    async with http.stream("GET", "queue/data", params={"session_hash": session}) as lines:
        async for line in lines.aiter_lines():
            message = json.loads(line.removeprefix("data:")) if line else {"msg": None}
            if seen is not None:
                seen.append(message["msg"])
            if message["msg"] == "process_completed":
                return message["output"]["data"] if message["success"] else message["output"]["error"]


def browser(url):
    return httpx.AsyncClient(base_url=url + "gradio_api/", timeout=120)


def small(path) -> np.ndarray:
    """A picture that was enlarged, as the network drew it."""
    return np.asarray(Image.open(path).convert("L"))[4::8, 4::8]


def pixels(gallery) -> list[np.ndarray]:
    return [small(item["image"]) for item in gallery]


def done(work):
    """What an event's outputs are given when its work is done."""
    work.result = work.run()
    return work.show(work)


def picture_file(folder, name, size=(28, 28), value=0) -> str:
    Image.new("L", size, value).save(folder / name)
    return str(folder / name)


def editor(background, layer):
    layers = [] if layer is None else [gradio_client.handle_file(layer)]
    file = gradio_client.handle_file(background)
    return {"background": file, "layers": layers, "composite": file}


# ---- the actions ---------------------------------------------------------------------------------------------------


def test_a_model_is_tried_out_when_it_is_read(monkeypatch, capsys):
    found = []
    monkeypatch.setattr(ScoreSdePipeline, "optimize", lambda pipe, **how: found.append(OPTIMIZE(pipe, **how)))
    served_model.read_pipeline(str(served_model.SHIPPED))
    (optimization,) = found
    assert set(optimization.seconds) == {"float32, channels_last", "float32, contiguous"}


def test_generate_draws_what_the_pipeline_draws(client):
    gallery, status, archive = client.predict("Bag", SAMPLER, 3, 1, 2, 5, False, api_name="/generate")
    assert [item["caption"] for item in gallery] == ["seed 5", "seed 6"] and "**3 evaluations**" in status
    model = served_model.load_model(str(served_model.SHIPPED))
    pipe = ScoreSdePipeline(unet=model.pipe.unet, scheduler=model.scheduler(SAMPLER))
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    expected = pipe(2, 3, class_labels=8, generator=generators, output_type="pt").images
    names = [f"bag-seed-{seed}-reverse-sde-few-steps-3-steps.png" for seed in (5, 6)]
    assert [Path(item["image"]).name for item in gallery] == names
    with zipfile.ZipFile(archive) as files:
        native = [np.asarray(Image.open(files.open(f"native-size/{name}"))) for name in names]
        enlarged = [Image.open(files.open(f"enlarged/{name}")) for name in names]
    for drawn, small, large, image in zip(pixels(gallery), native, enlarged, expected, strict=True):
        np.testing.assert_allclose(drawn, 255 * image[0], atol=1)
        np.testing.assert_array_equal(small, drawn)
        assert large.size == (224, 224)


def test_each_shipped_model_has_a_page_with_its_classes_and_image_size(app, client, monkeypatch):
    networks = []
    from_pretrained = ScoreSdePipeline.from_pretrained
    monkeypatch.setattr(ScoreSdePipeline, "from_pretrained", lambda f: networks.append(f) or from_pretrained(f))
    folder = str(served_model.SHIPPED.with_name("cifar10-ve"))
    assert ("cifar10-ve", "cifar10-ve", True) in app.pages
    gallery, *_ = client.predict("horse", SAMPLER, 2, 1, 1, 5, False, api_name="/cifar10-ve_generate")
    pipe = from_pretrained(folder)
    pipe.scheduler = served_model.load_model(folder).scheduler(SAMPLER)
    expected = pipe(1, 2, class_labels="horse", generator=[torch.Generator().manual_seed(5)], output_type="pt").images
    drawn = np.asarray(Image.open(gallery[0]["image"]).convert("RGB"))[3::7, 3::7]
    np.testing.assert_allclose(drawn, 255 * expected[0].permute(1, 2, 0), atol=1)
    client.predict("Bag", SAMPLER, 2, 1, 1, 5, False, api_name="/generate")
    assert networks == [folder, str(served_model.SHIPPED)]  # one is in memory, and loaded when it is asked for


def test_classes_without_training_images_are_not_offered(app, client):
    with pytest.raises(gradio_client.exceptions.AppError, match="Class must be one of .*cbsd, .*but is 'cbb'"):
        client.predict("cbb", SAMPLER, 2, 1, 1, 5, False, api_name="/cassava-64-ve_generate")
    model = served_model.load_model(str(served_model.SHIPPED.with_name("cassava-64-ve")))
    assert model.classes == {"cbsd": 1, "cgm": 2, "cmd": 3, "healthy": 4}
    pages = [block.value for block in app.blocks.values() if isinstance(block, gradio.Markdown)]
    assert model.about and any(model.about in str(text) for text in pages)


@pytest.mark.parametrize("sampler", served_model.SAMPLERS)
def test_the_seed_of_an_image_draws_it_again_alone(sampler):
    model = served_model.load_model(str(served_model.SHIPPED))
    gallery = done(tab_generate.generate(model, "Sandal", sampler, 3, 1.5, 3, 7, False))[0]
    again = done(tab_generate.generate(model, "Sandal", sampler, 3, 1.5, 1, 9, False))[0]
    np.testing.assert_allclose(small(gallery[2][0]).astype(float), small(again[0][0]), atol=2)
    assert Path(again[0][0]).name.endswith("-3-steps-guidance-1.5.png")


def test_images_appear_while_they_form(client, monkeypatch):
    monkeypatch.setattr(bounded_work, "INTERVAL", 0.05)
    job = client.submit("Bag", SAMPLER, 10, 1, 1, 0, False, api_name="/generate")
    last, *_ = job.result()
    states = [pixels(gallery) for gallery, *_ in job.outputs() if isinstance(gallery, list) and gallery]
    assert len(states) > 2
    distance = [np.abs(state[0].astype(float) - pixels(last)[0]).mean() for state in states]
    assert distance[0] > 20 and distance[-1] == 0


def test_inpaint_keeps_what_was_not_painted_over(client, tmp_path):
    background = client.predict(api_name="/random_image")
    layer = Image.new("RGBA", (224, 224))
    layer.paste("orange", (0, 112, 224, 224))
    layer.save(tmp_path / "layer.png")
    gallery, status, _ = client.predict(
        editor(background, tmp_path / "layer.png"), "Projection (the paper's)", 4, 2, 0, api_name="/inpaint"
    )
    given, first, second, _ = pixels(gallery)
    original = small(background)
    for image in (first, second):
        np.testing.assert_array_equal(image[:14], original[:14])
    assert np.abs(first[14:].astype(float) - second[14:]).mean() > 0
    assert "**4 evaluations**" in status


def test_bits_per_dim_are_the_models_and_set_noise_apart(client, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    value, status, picture = client.predict(
        gradio_client.handle_file(tmp_path / "noise.png"), api_name="/bits_per_dim"
    )
    pipe = served_model.load_model(str(served_model.SHIPPED)).pipe
    expected = pipe.bits_per_dim(
        torch.from_numpy(noise)[None, None], torch.Generator().manual_seed(0), rtol=TOLERANCE, atol=TOLERANCE
    )
    assert value == pytest.approx(expected.bits_per_dim.item(), abs=1e-3)
    assert "Less likely than typical test images" in status and "your image" in picture
    assert "changed more than typical test images" in status and "Likelihood is not typicality" in status


def test_interpolation_ends_at_both_seeds(client):
    strip, *_ = client.predict(1, 2, 3, "Bag", api_name="/interpolate_seeds")
    back, *_ = client.predict(2, 1, 3, "Bag", api_name="/interpolate_seeds")
    for there, here in zip(pixels(strip), pixels(back)[::-1], strict=True):
        np.testing.assert_allclose(there.astype(float), here, atol=2)
    assert [item["caption"] for item in strip] == ["seed 1", "50%", "seed 2"]


def test_interpolation_of_images_passes_through_both(client, tmp_path):
    sheet, files = Image.open(ROOT / "space_app" / "fashion_mnist.png"), []
    for column in (0, 1):
        sheet.crop((28 * column, 0, 28 * column + 28, 28)).save(tmp_path / f"{column}.png")
        files.append(tmp_path / f"{column}.png")
    model = served_model.load_model(str(served_model.SHIPPED))
    strip = done(tab_interpolate.interpolate_images(model, *map(str, files), 3))[0]
    for found, file in ((small(strip[0][0]), files[0]), (small(strip[-1][0]), files[1])):
        assert np.abs(found.astype(float) - np.asarray(Image.open(file))).mean() < 2
    with pytest.raises(gradio_client.exceptions.AppError, match="There is no image yet"):
        client.predict(gradio_client.handle_file(files[0]), None, 3, api_name="/interpolate_images")


def test_watch_shows_the_image_and_one_way_back_under_three_sdes(client):
    file = client.predict(api_name="/random_image")
    strips, status, archive, _ = client.predict(
        gradio_client.handle_file(file), "Probability flow ODE", 0, api_name="/watch"
    )
    assert [strip["caption"] for strip in strips] == ["VE", "VP", "sub-VP"]
    names = [f"watch-{sde}-probability-flow-ode-seed-0.png" for sde in ("ve", "vp", "sub-vp")]
    assert [Path(strip["image"]).name for strip in strips] == names
    tiles = []
    with zipfile.ZipFile(archive) as files:
        for strip, name in zip(strips, names, strict=True):
            picture = np.asarray(Image.open(strip["image"]))
            factor = picture.shape[0] // 56
            rows = picture[factor // 2 :: factor, factor // 2 :: factor].astype(float)
            np.testing.assert_array_equal(np.asarray(Image.open(files.open(f"native-size/{name}"))), rows)
            np.testing.assert_allclose(rows[:28, :28], small(file), atol=2)  # t = 0
            tiles.append(rows[28:, :28])
    # In x / alpha and sigma / alpha the ODE is one for all SDEs; what differs is where it begins, and its steps.
    assert np.abs(tiles[1] - tiles[2]).mean() < 30
    assert "evaluations" in status


def test_two_users_at_once_get_their_own(url, tmp_path):
    requests = [("Bag", 1), ("Sandal", 2), ("Trouser", 3), ("Bag", 4)]

    def ask(client, request):
        name, seed = request
        gallery, *_ = client.predict(name, SAMPLER, 4, 1, 1, seed, False, api_name="/generate")
        assert gallery[0]["caption"] == f"seed {seed}"
        return pixels(gallery)[0]

    one = new_client(url, tmp_path)
    alone = [ask(one, request) for request in requests]
    clients = [new_client(url, tmp_path) for _ in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(ask, clients, requests))
    for k, image in enumerate(together):
        np.testing.assert_allclose(image.astype(float), alone[k], atol=1)
        assert all(np.abs(image.astype(float) - other).mean() > 5 for j, other in enumerate(alone) if j != k)


# ---- bad inputs and limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("Bag", SAMPLER, 3, 1, 1, -1, False), "The seed must be a whole number from 0 to 4,294,967,295, but is -1"),
        (("Bag", SAMPLER, 3, 1, 1, 0.5, False), "The seed must be a whole number"),
        (("Bag", SAMPLER, 1000, 1, 1, 0, False), "Steps: 1000 is greater than maximum value 200"),
        (("Bag", SAMPLER, 0, 1, 1, 0, False), "0 is less than minimum value 1"),
        (("Hat", SAMPLER, 3, 1, 1, 0, False), "Class must be one of Any class, T - shirt / top, Trouser"),
        (("Any class", SAMPLER, 3, 2, 1, 0, False), "choose one"),
    ],
)
def test_bad_settings_are_explained(client, arguments, message):
    with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)):
        client.predict(*arguments, api_name="/generate")


def test_bad_files_are_explained(client, tmp_path):
    (tmp_path / "text.png").write_text("This is not an image.")
    cases = [
        (picture_file(tmp_path, "big.png", (8000, 8000)), "8,000 x 8,000 pixels is too large"),
        (str(tmp_path / "text.png"), "not an image that can be read"),
    ]
    for file, message in cases:
        handle = gradio_client.handle_file(file)
        with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)):
            client.predict(handle, api_name="/bits_per_dim")
        with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)):
            client.predict(editor(file, None), "DPS", 2, 1, 0, api_name="/inpaint")
    with pytest.raises(gradio_client.exceptions.AppError, match="There is no image yet"):
        client.predict(None, api_name="/bits_per_dim")
    with pytest.raises(gradio_client.exceptions.AppError, match="Nothing is painted over yet"):
        client.predict(editor(picture_file(tmp_path, "black.png"), None), "DPS", 2, 1, 0, api_name="/inpaint")


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the image was decoded"))
    for side in (8000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        with pytest.raises(gradio.Error, match="too large"):
            open_picture(content)


def test_damaged_files_are_explained(tmp_path):
    file = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(gradio.Error, match="damaged"):
        read_picture(str(file), (1, 28, 28), PixelFormat())


def test_a_model_of_16_bits_sees_16_bits(tmp_path):
    """12 bits in files of 16: a ramp on the canvas is a ramp, and its likelihood is that of its own 4,096 levels."""
    torch.manual_seed(0)
    network = NCSNppUNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        value_dtype="uint16",
        value_range=(0, 4095),
    )
    pipe = ScoreSdePipeline(network, ScoreSdePredictorCorrectorScheduler(sde="ve"))
    pipe.save_pretrained(tmp_path / "deep")
    ramp = (torch.arange(64).view(8, 8) * 65).numpy().astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    picture_file(tmp_path, "grey.png", (8, 8), 200)
    app = space_app.build_app(str(tmp_path / "deep"))
    _, address, _ = space_app.launch(app, prevent_thread_lock=True, quiet=True)
    try:
        client = new_client(address, tmp_path)
        layer = Image.new("RGBA", (8, 8))
        layer.paste("orange", (0, 0, 8, 4))
        layer.save(tmp_path / "layer.png")
        gallery, *_ = client.predict(
            editor(tmp_path / "ramp.png", tmp_path / "layer.png"), "DPS", 2, 1, 0, api_name="/inpaint"
        )
        seen = np.asarray(Image.open(gallery[0]["image"]).convert("L"))[14::28, 14::28]
        np.testing.assert_allclose(seen[4:], ramp[4:] / 4095 * 255, atol=0.5)
        measured = [
            client.predict(gradio_client.handle_file(file), api_name="/bits_per_dim")[0]
            for file in (tmp_path / "ramp.png", client.predict(api_name="/random_image"))
        ]
        expected = pipe.bits_per_dim(
            Image.fromarray(ramp), torch.Generator().manual_seed(0), rtol=TOLERANCE, atol=TOLERANCE
        )
        assert measured[0] == pytest.approx(expected.bits_per_dim.item(), abs=1e-3) and np.isfinite(measured[1])
        with pytest.raises(gradio_client.exceptions.AppError, match="8 bits, and the model's images have uint16"):
            client.predict(gradio_client.handle_file(tmp_path / "grey.png"), api_name="/bits_per_dim")
        Image.fromarray(ramp + 4000).save(tmp_path / "bright.png")
        with pytest.raises(gradio_client.exceptions.AppError, match=re.escape("must lie in [0, 4095]")):
            client.predict(gradio_client.handle_file(tmp_path / "bright.png"), api_name="/bits_per_dim")
    finally:
        app.close(verbose=False)


def test_models_whose_images_are_no_pictures(tmp_path):
    """Floating point has no levels, and a picture has no five bands; but grey is grey at any depth."""
    file = picture_file(tmp_path, "grey.png", (8, 8), 200)
    floats = SimpleNamespace(pixels=PixelFormat.of("float32", (-1, 3)), image_shape=(1, 8, 8))
    with pytest.raises(gradio.Error, match="hold float32 values from -1 to 3"):
        likelihood(floats, file)
    with pytest.raises(gradio.Error, match="have 5 bands"):
        read_picture(file, (5, 8, 8), floats.pixels)
    assert torch.allclose(read_picture(file, (1, 8, 8), floats.pixels), torch.full((1, 1, 8, 8), 200 / 255))


def test_work_ends_after_its_time_and_when_nobody_waits(monkeypatch):
    def forever(work):
        while True:
            work.tick(0.5)

    work = bounded_work.Work(forever)
    steps = iter(work)
    next(steps)
    steps.close()
    with pytest.raises(bounded_work.Stopped):
        work.tick(0.6)
    monkeypatch.setattr(bounded_work, "TIME_LIMIT", 0.0)
    with pytest.raises(gradio.Error, match="longer than 0 seconds"):
        list(bounded_work.Work(forever))


# ---- the queue -----------------------------------------------------------------------------------------------------


def test_every_event_goes_through_one_bounded_queue(app, events):
    tabs = {"generate", "inpaint", "bits_per_dim", "watch"}
    randoms = {"random_image", "random_images", "random_canvas", "random_start"}
    for page in ("", "cifar10-ve"):
        served = [function for function in app.fns.values() if function.fn is not None and function.page == page]
        outside = {function.api_name for function in served if not function.queue}
        assert len(outside) == 6 and all(name.startswith("stop") for name in outside)  # they only end what computes
        network = {function.api_name for function in served if function.concurrency_id == "network"}
        names = tabs | {f"{name}_example" for name in (*tabs, "interpolate")} | randoms
        names |= {"interpolate_seeds", "interpolate_images"}
        prefix = f"{page}_" if page else ""
        assert network == {prefix + name for name in names}
        others = [function for function in served if function.api_name not in network | outside]
        assert all(function.api_visibility == "private" for function in others)  # examples and what the model sees
        assert all(events[name].concurrency_limit == bounded_work.AT_ONCE for name in network)
        public = {function.api_name for function in served if function.api_visibility == "public"}
        seen = tabs | {"interpolate_seeds", "interpolate_images", "random_image"}
        assert public == {prefix + name for name in seen}
    assert app._queue.max_size == door.WAITING and not app.api_open


def test_nothing_computes_past_the_queue(url, events):
    with httpx.Client(base_url=url) as http:
        for name, function in events.items():
            if function.fn is not None and not name.startswith("stop"):
                answers = [http.post(f"gradio_api/{route}/{name}", json={"data": []}) for route in ("run", "api")]
                assert [answer.status_code for answer in answers] == [404, 404]


def test_random_images_are_drawn_in_the_threads_of_the_network(url, events, monkeypatch):
    threads, real = [], space_app.to_picture

    def spy(*image):
        threads.append(threading.current_thread().name)
        return real(*image)

    monkeypatch.setattr(space_app, "to_picture", spy)

    async def all_of_them():
        async with browser(url) as http:
            for name in ("random_image", "random_images", "random_canvas", "random_start"):
                await ask(http, events[name], [])

    asyncio.run(all_of_them())
    assert len(threads) == 5 and all(name.startswith("network") for name in threads)


def test_many_calls_at_once_make_few_threads(url, events):
    before = most = threading.active_count()  # main, servers and the like, and of earlier tests

    async def watch():
        nonlocal most
        while True:
            most = max(most, threading.active_count())
            await asyncio.sleep(0.01)

    async def calls(count):
        async with browser(url) as http:
            watching = asyncio.create_task(watch())
            answers = await asyncio.gather(*(ask(http, events["random_image"], []) for _ in range(count)))
            watching.cancel()
            return answers

    answers = asyncio.run(calls(80))
    answered = [answer for answer in answers if isinstance(answer, list)]
    assert len(answered) >= door.WAITING and all("Queue is full" in text for text in answers if text not in answered)
    assert most <= before + 2 * door.THREADS + bounded_work.AT_ONCE


def test_stopped_and_abandoned_work_takes_no_more_threads(monkeypatch):
    monkeypatch.setattr(bounded_work, "INTERVAL", 0.01)
    begun, go_on = [], threading.Event()

    def slow(work):
        begun.append(work)
        go_on.wait(60)
        work.tick(0.5)

    works = [bounded_work.Work(slow) for _ in range(20)]
    for work in works:
        looks = iter(work)
        next(looks)
        looks.close()
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name.startswith("network") for name in names) <= bounded_work.AT_ONCE
    go_on.set()
    done = bounded_work.Work(lambda work: "done")
    for _ in done:
        pass
    assert done.result == "done" and len(begun) == bounded_work.AT_ONCE


@pytest.mark.parametrize("waits", [False, True])
def test_stop_ends_work_and_keeps_what_was_seen(url, events, waits):
    async def visit():
        async with browser(url) as http:
            long, seen, blocking = ["Bag", "Ancestral", 200, 1, 16, 0, False], [], []
            if waits:  # others compute
                others = [uuid.uuid4().hex for _ in range(bounded_work.AT_ONCE)]
                blocking = [asyncio.create_task(ask(http, events["generate"], long, other)) for other in others]
                await asyncio.sleep(1)
            mine = uuid.uuid4().hex
            asked = asyncio.create_task(ask(http, events["generate"], long, mine, seen))
            while ("estimation" if waits else "process_generating") not in seen:
                await asyncio.sleep(0.05)
            for session in (uuid.uuid4().hex, mine):  # the first is another visitor's, who stops nothing
                assert not asked.done()
                await http.post("run/stop", json={"data": [], "session_hash": session})
                await asyncio.sleep(0.3)
            gallery, status, _ = await asyncio.wait_for(asked, 30)
            for task, session in zip(blocking, others if waits else [], strict=True):
                assert not task.done()
                await http.post("run/stop", json={"data": [], "session_hash": session})
                await task
            return gallery, status

    gallery, status = asyncio.run(visit())
    if waits:
        assert gallery["__type__"] == "update" and "value" not in gallery
        assert "Stopped before it began" in str(status)
    else:  # as it was when it was stopped, and called so
        (share,) = re.findall(r"Stopped at (\d+)%", str(status))
        names = [Path(item["image"]["path"]).stem for item in gallery]
        assert len(names) == 16 and all(name.endswith(f"-stopped-at-{share}-percent") for name in names)


# ---- bad inputs ----------------------------------------------------------------------------------------------------


def test_a_text_where_a_number_is_meant_gets_a_message(url, events, capfd):
    async def answer(http, function, k, wrong):
        data = [getattr(part, "value", None) for part in function.inputs]
        data[k] = wrong
        content = json.dumps({"data": data, "fn_index": function._id, "session_hash": "x"})
        joined = await http.post("queue/join", content=content, headers={"content-type": "application/json"})
        assert joined.status_code == 200
        async with http.stream("GET", "queue/data", params={"session_hash": "x"}) as lines:
            messages = [json.loads(line[5:]) async for line in lines.aiter_lines() if line]
        return next(m["output"]["error"] for m in messages if m["msg"] == "process_completed")

    async def every_number():
        async with browser(url) as http:
            for function in events.values():
                for k, component in enumerate(function.inputs):
                    if not isinstance(component, gradio.Number) or function.fn is None:
                        continue
                    message = f"{component.label} must be a number, but is"
                    for wrong in values:
                        with pytest.raises(gradio.Error, match=message):
                            door.check_value(component, wrong)
                    # By a request: the first number of all gets all, the first of each other name one.
                    sent = values if not found else [next(turns)] if component.label not in found else []
                    for wrong in sent:
                        assert message in await answer(http, function, k, wrong)
                    found.append(component.label)

    found: list[str] = []
    values = ["many", "3", True, None, [3], {"value": 3}, 1e400]
    turns = itertools.cycle(values)
    asyncio.run(every_number())
    assert len(set(found)) >= 8 and "Traceback" not in capfd.readouterr().err


def test_whatever_is_sent_gets_a_message(url, events, capfd):
    kinds = ["many", None, 3, [], ["Bag"], {}, {"path": 3}, {"background": 1}, {"path": "x.png"}]
    wrong = itertools.cycle(kinds)  # four for each input

    async def every_input():
        async with browser(url) as http:
            for function in (events[name] for name in ("generate", "inpaint", "watch", "load_example_2")):
                for k, component in enumerate(function.inputs):
                    for value in [] if isinstance(component, gradio.Number) else itertools.islice(wrong, 4):
                        data = [getattr(part, "value", None) for part in function.inputs]
                        data[k] = value
                        answers.append(await ask(http, function, data))
            answers.append(await ask(http, events["generate"], []))

    answers: list = []
    asyncio.run(every_input())
    assert all(isinstance(answer, str) and len(answer) > 10 for answer in answers)
    for route, body in {
        "queue/join": {"data": [], "fn_index": 999, "session_hash": "x"},
        "call/v2/generate": {"stpes": 3},
        "call/nothing": {"data": []},
    }.items():
        answer = httpx.post(f"{url}gradio_api/{route}", json=body)
        assert answer.status_code == 400 and "gradio_api/info" in answer.text
    assert "Traceback" not in capfd.readouterr().err


def test_files_of_the_server_are_not_read(url, events):
    file = {"path": str(ROOT / "space_app" / "fashion_mnist.png")}

    async def look():
        async with browser(url) as http:
            yield await ask(http, events["watch"], [file, "Probability flow ODE", 0])
            canvas = {"background": file, "layers": [], "composite": None}
            yield await ask(http, events["inpaint"], [canvas, "DPS", 2, 1, 0])

    async def both():
        return [answer async for answer in look()]

    assert all("must be an uploaded file" in answer for answer in asyncio.run(both()))


def test_a_canvas_forgets_what_nobody_asks_about(monkeypatch):
    monkeypatch.setattr("pictures.MAX_BLOBS", 1000)
    canvas = mask_editor()

    def send(name, index="null"):
        sent = {"type": "background", "index": index, "id": name}
        canvas.accept_blobs(type("Body", (), {"data": sent, "files": [("blob", bytes(400))]}))

    for name in "abcd":
        send(name)
    assert [*canvas.blob_storage] == ["c", "d"]
    with pytest.raises(ValueError, match="4 layers at most"):
        send("e", "1000000000")


# ---- the end -------------------------------------------------------------------------------------------------------

WRITES = """
import sys, threading, time
sys.path.insert(0, {folder!r})
from temporary_folder import attended_folder
folder = attended_folder()
def write():
    for k in range(10**9):
        (folder / str(k) / "deep").mkdir(parents=True)
        (folder / str(k) / "deep" / "file").write_text("x")
for _ in range(4):
    threading.Thread(target=write).start()
print("ready", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGKILL"])
def test_no_temporary_file_is_left(tmp_path, name):
    program = WRITES.format(folder=str(ROOT / "space_app"))
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        assert len([*tmp_path.iterdir()]) == 1
        process.send_signal(getattr(signal, name))
        process.stdout.read()  # until both processes have ended
    assert not any(tmp_path.iterdir()) and process.returncode == (-9 if name == "SIGKILL" else 0)


@pytest.mark.parametrize("wait", [0.0, 1.0])
def test_no_temporary_file_is_left_by_an_app_that_starts(tmp_path, wait):
    command = [sys.executable, str(ROOT / "space_app" / "app.py")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        while not any(tmp_path.iterdir()):
            time.sleep(0.001)
        time.sleep(wait)
        process.terminate()
        process.stdout.read()
    assert not any(tmp_path.iterdir()) and process.returncode == 0


def test_the_exit_status_is_that_of_the_program(tmp_path):
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'space_app')!r}); import temporary_folder as t;"
    for ending, status in (("sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("1 / 0", 1)):
        command = [sys.executable, "-c", f"{program} t.attended_folder(); {ending}"]
        done = subprocess.run(command, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True)
        assert done.returncode == status and not any(tmp_path.iterdir())


# ---- models and files ----------------------------------------------------------------------------------------------


def test_numbers_of_the_test_images_are_of_the_shipped_network():
    models = json.loads(served_model.TEST_DATA.read_text())["models"]
    assert {"fashion-mnist-ve", "fashion-mnist-subvp"} == set(models)
    for name in models:
        scores = served_model.load_model(str(served_model.SHIPPED.with_name(name))).test_scores
        assert scores is not None, "new weights: run python space_app/make_model_data.py"
        assert [len(scores[key]) for key in make_model_data.SCORES] == [make_model_data.IMAGES] * 2


def test_bits_per_dim_are_those_of_the_card(tmp_path):
    """By the same noise, under the same SDE: of the shown image, and of the test images on average."""
    folder = served_model.SHIPPED.with_name("fashion-mnist-subvp")
    model = served_model.load_model(str(folder))
    results = ModelCard.load(folder / "README.md").data.eval_results
    (on_card,) = [r for r in results if r.metric_args["dequantization"] == "truncated_normal"]
    tests = torch.tensor(model.test_scores["bits_per_dim"])
    assert tests.mean() == pytest.approx(on_card.metric_value, abs=4 * (tests.std() / len(tests) ** 0.5).item())
    Image.fromarray(model.test_images[0, 0].numpy()).save(tmp_path / "image.png")
    value, *_ = done(likelihood(model, str(tmp_path / "image.png")))
    options = {"dequantize": "truncated_normal", "rtol": TOLERANCE, "atol": TOLERANCE}
    expected = model.pipe.bits_per_dim(model.test_images[:1], torch.Generator().manual_seed(0), **options)
    assert value == pytest.approx(expected.bits_per_dim.item(), abs=1e-3)


@pytest.mark.parametrize("name", ["fashion-mnist-ve", "fashion-mnist-subvp"])
def test_a_black_image_is_likelier_than_19_of_20_garments(name):
    """As the tab says of each model that has scores of test images."""
    model = served_model.load_model(str(served_model.SHIPPED.with_name(name)))
    black = scores(model, bounded_work.Work(None), torch.zeros(1, *model.image_shape))["bits_per_dim"].item()
    assert (torch.tensor(model.test_scores["bits_per_dim"]) > black).float().mean() >= 0.95


def test_a_picture_that_is_being_fetched_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "get_upload_folder", lambda: str(tmp_path))
    path = pictures.picture_file(Image.new("L", (8, 8)), "black")
    with open(path, "rb") as fetched:
        assert pictures.picture_file(Image.new("L", (8, 8)), "black") == path
        assert os.fstat(fetched.fileno()).st_nlink == 0 and os.listdir(Path(path).parent) == ["black.png"]


def test_another_network_has_no_histogram(tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(served_model.SHIPPED, folder)
    pipe = ScoreSdePipeline.from_pretrained(folder)
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(0.01)
    pipe.save_pretrained(folder)
    model = served_model.load_model(str(folder))
    assert model.test_scores is None and model.drawn is None and model.class_names[8] == "Bag"
    (folder / "README.md").unlink()
    model = served_model.load_model(str(folder))
    assert model.test_images is None and model.class_names[0] == "T - shirt / top"  # as the network has it
    space_app.build_app(str(folder))


def test_without_a_model_the_page_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(served_model, "SHIPPED", tmp_path / "none")
    assert "MODEL_ID" in str(space_app.build_app(None).config["components"])
    page = str(space_app.build_app(str(tmp_path)).config["components"])
    assert "can't be loaded" in page and "did you mean" not in page
    (tmp_path / "pipeline").mkdir()  # a training run's
    assert f"did you mean {tmp_path / 'pipeline'}?" in str(space_app.build_app(str(tmp_path)).config["components"])


def test_one_evaluation_is_not_called_many():
    work = tab_generate.generate(served_model.load_model(str(served_model.SHIPPED)), "Bag", "DDIM", 1, 1, 1, 0)
    list(work)
    assert "**1 evaluation** of the network" in work.show(work)[1]


@pytest.mark.parametrize("consistency", [False, True])
def test_any_class_is_offered_where_the_network_learnt_it(tmp_path, consistency):
    scheduler = ScoreSdeConsistencyScheduler if consistency else ScoreSdePredictorCorrectorScheduler
    small = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8,), "layers_per_block": 1, "fir": False}
    for share in (0, 0.1, None):
        network = NCSNppUNet2DModel(
            **small, scale_by_sigma=False, num_class_embeds=3, label_dropout=share, consistency=consistency
        )
        pipe = ScoreSdePipeline(unet=network, scheduler=scheduler(sde="ve", sigma_max=80.0, prediction_type="sample"))
        pipe.save_pretrained(tmp_path / str(share))
        app = space_app.build_app(str(tmp_path / str(share)))
        fields = {b.label: b for b in app.blocks.values() if isinstance(b, gradio.Dropdown | gradio.Number)}
        choices = [name for name, _ in fields["Class"].choices]
        assert choices == ([] if share == 0 else ["Any class"]) + ["class 0", "class 1", "class 2"]
        assert fields["Class"].value == choices[0]
        model = served_model.load_model(str(tmp_path / str(share)))
        tabs = [tab_one_step] if consistency else [tab_generate, tab_interpolate]
        named = [value for tab in tabs for example in tab.example_settings(model).values() for value in example]
        assert ("Any class" in named) == (share != 0)
        if not consistency:
            assert fields["Guidance"].visible == (share != 0)
            assert (3 in [example[3] for example in tab_generate.example_settings(model).values()]) == (share != 0)
    if not consistency:
        with pytest.raises(gradio.Error, match="never learnt to draw without a class"):
            tab_generate.generate(served_model.load_model(str(tmp_path / "0")), "class 1", SAMPLER, 2, 2, 1, 0)


def test_states_are_shown_with_signal_and_noise_in_their_ratio():
    scheduler = served_model.load_model(str(served_model.SHIPPED)).scheduler(SAMPLER, sampling_sde="vp")
    t = torch.tensor(0.4, dtype=torch.float64)
    image = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)  # black and white, -1 and 1 for the network
    alpha, sigma = scheduler.sde.alpha(t), scheduler.sde.sigma(t)
    shown = visible_states((alpha * (2 * image - 1)).float(), scheduler, t)
    torch.testing.assert_close(shown, (0.5 + (image - 0.5) * (alpha / (alpha**2 + sigma**2).sqrt())).float())


def test_all_files_are_in_the_temporary_folder(client):
    def files():
        found = {*Path.cwd().iterdir(), *ROOT.iterdir(), *(ROOT / "space_app").rglob("*")}
        return {path for path in found if path.suffix != ".pyc"}

    before = files()
    client.predict("Bag", SAMPLER, 2, 1, 1, 0, False, api_name="/generate")
    assert files() == before and any(space_app.TEMPORARY.rglob("*.png"))


def test_the_folder_is_a_space():
    from sde_diffusers.hub.space import push_space

    sizes = push_space(ROOT / "space_app", "someone/space", "someone/model", dry_run=True)
    assert {"app.py", "requirements.txt", "README.md", "fashion_mnist.json"} <= set(sizes)


def test_a_consistency_model_has_a_page_of_samples_alone(tmp_path):
    scheduler = ScoreSdeConsistencyScheduler(sde="ve", sigma_min=0.002, sigma_max=80.0, prediction_type="sample")
    small = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8,), "layers_per_block": 1, "fir": False}
    network = NCSNppUNet2DModel(**small, scale_by_sigma=False, num_class_embeds=3, consistency=True).eval()
    ScoreSdePipeline(unet=network, scheduler=scheduler).save_pretrained(tmp_path)
    model = served_model.load_model(str(tmp_path))
    names = {function.api_name for function in space_app.build_app(str(tmp_path)).fns.values()}
    assert {"one_step", "one_step_example", "stop"} < names and "generate" not in names
    for evaluations, seed in (("1", 3), ("2", 4)):
        work = tab_one_step.one_step(model, "class 2", evaluations, seed)
        list(work)
        images, status, archive = work.show(work)
        assert [name for _, name in images] == [f"seed {seed + k}" for k in range(8)]
        words = f"{evaluations} evaluation" + ("s" if evaluations == "2" else "")
        assert f"**{words}** of the network" in status
        assert images[7][0].stem == f"class-2-seed-{seed + 7}-{words.replace(' ', '-')}"
        assert len(zipfile.ZipFile(archive).namelist()) == 16
        generators = [torch.Generator().manual_seed(seed + k) for k in range(8)]
        pipe = ScoreSdePipeline(unet=network, scheduler=scheduler)
        expected = pipe(8, int(evaluations), class_labels=2, generator=generators, output_type="pt").images
        last = Image.open(images[7][0])
        factor = last.width // 8
        np.testing.assert_allclose(np.asarray(last)[::factor, ::factor], 255 * expected[7, 0], atol=2)
    with pytest.raises(gradio.Error, match="Evaluations must be a whole number"):
        tab_one_step.one_step(model, "class 2", "3", 0)
