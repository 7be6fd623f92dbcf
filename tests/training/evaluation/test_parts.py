"""Shards, nearest neighbours and noisy images."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from evaluation.distances import FeatureStatistics, precision_recall
from evaluation.feature_metrics import compare_features
from evaluation.folder_samples import as_samples
from evaluation.neighbors import Neighbors, nearest, pixels
from evaluation.page import draw_page
from evaluation.samples import save_images
from evaluation.shards import compute_in_shards
from evaluation.tables import make_tables, markdown
from evaluation.yardsticks import noisy_images
from images.loading import ImageData
from run.yaml_config import ConfigError
from sde_diffusers.images import PixelFormat


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def test_shards_are_computed_once_and_joined_in_order(tmp_path, accelerator):
    computed = []

    def square(part):
        computed.append(part)
        return {"squares": torch.tensor([k**2 for k in part])}

    for _ in range(2):
        found = compute_in_shards(square, tmp_path / "s", {"power": (2,)}, 7, 3, accelerator, "Squares")
        assert found["squares"].tolist() == [0, 1, 4, 9, 16, 25, 36]
    assert computed == [range(0, 3), range(3, 6), range(6, 7)]
    assert json.loads((tmp_path / "s" / "description.json").read_text()) == {"power": [2], "shard_size": 3}
    with pytest.raises(ConfigError, match=r"power was \[2\] and is \[3\] now"):
        compute_in_shards(square, tmp_path / "s", {"power": (3,)}, 7, 3, accelerator, "Squares")


def test_a_shard_that_was_cut_short_is_not_taken(tmp_path, accelerator):
    def fail(part):
        if part.start:
            raise RuntimeError
        return {"x": torch.zeros(len(part))}

    with pytest.raises(RuntimeError):
        compute_in_shards(fail, tmp_path, {}, 4, 2, accelerator, "")
    (tmp_path / ".00000002-00000004.safetensors.1.incomplete").write_bytes(b"half")
    found = compute_in_shards(lambda part: {"x": torch.ones(len(part))}, tmp_path, {}, 4, 2, accelerator, "")
    assert found["x"].tolist() == [0, 0, 1, 1]


def test_neighbourhoods_are_compared_between_equal_numbers():
    features, reference = torch.randn(2, 60, 2, generator=torch.Generator().manual_seed(0))
    statistics = FeatureStatistics.from_features(reference)
    precision, recall = compare_features(["precision_recall"], features, reference[:20], statistics)
    assert (precision["num_images"], precision["num_reference"], precision["k"]) == (20, 20, 3)
    assert (precision["value"], recall["value"]) == precision_recall(features[:20], reference[:20])


def test_saved_images_replace_those_of_other_samples(tmp_path):
    save_images(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), tmp_path)
    save_images(torch.full((2, 3, 2, 2), 9, dtype=torch.uint8), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.png", "000001.png"]
    assert np.unique(np.array(Image.open(tmp_path / "000000.png"))) == 9


def test_nearest_images_are_those_of_all_distances():
    generator = torch.Generator().manual_seed(0)
    queries, reference = (torch.rand(n, 20, generator=generator) for n in (30, 600))
    queries[3] = reference[77]
    distances, indices = nearest(queries, reference, "")
    expected = torch.cdist(queries.double(), reference.double()).min(1)
    torch.testing.assert_close(indices, expected.indices)
    torch.testing.assert_close(distances, expected.values.float())
    assert indices[3] == 77 and distances[3] == 0


def test_copies_of_training_images_are_noticed():
    generator = torch.Generator().manual_seed(0)
    training, test, new = (torch.randint(256, (200, 1, 4, 4), generator=generator).byte() for _ in range(3))

    def share(samples):
        distances, indices = nearest(pixels(samples), pixels(training), "")
        test_distances, _ = nearest(pixels(test), pixels(training), "")
        return Neighbors(distances, indices, test_distances, "pixels").record()["value"]

    assert share(new) < 0.05
    assert share(torch.cat([new[:100], training[:100]])) == pytest.approx(0.5, abs=0.03)


@pytest.mark.filterwarnings("error")
def test_copies_without_test_images_are_drawn(tmp_path):
    """All distances are 0, and of the other kind there are none."""
    neighbors = Neighbors(torch.zeros(8), torch.arange(8), None, "pixels")
    page = draw_page("title", [], None, neighbors, None, None, tmp_path / "none.jsonl", shown=0)
    page.savefig(tmp_path / "page.png")
    (axes,) = page.axes
    (bars,) = axes.containers
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["8 samples"]
    assert bars[0].get_x() == pytest.approx(0) and bars[0].get_height() * bars[0].get_width() == pytest.approx(1)


def test_yardsticks_have_the_noise_that_they_are_named_by():
    images = torch.full((50, 1, 28, 28), 128, dtype=torch.uint8)
    sets = noisy_images(images, [0, 8, 16.5], 40, seed=0)
    assert list(sets) == [f"test images + noise {deviation}/255" for deviation in ("0", "8", "16.5")]
    for noisy, deviation in zip(sets.values(), (0, 8, 16.5), strict=True):
        assert noisy.dtype == torch.uint8 and noisy.shape == (40, 1, 28, 28)
        assert noisy.float().std().item() == pytest.approx((deviation**2 + (deviation > 0) / 12) ** 0.5, rel=0.02)
    assert len(noisy_images(images, [8], None, seed=0)["test images + noise 8/255"]) == 50


def test_tables_show_notes_once():
    about = {"feature_space": "f", "feature_dimension": 4, "resolution": "8x8x1", "dataset": "d", "split": "train"}
    about |= {"num_images": 1000, "num_reference": 50}
    records = [
        {"metric": "frechet_distance", "value": None, "refused": "too few", **about, "images": "samples", "nfe": 9},
        {"metric": "precision", "value": 0.5, **about, "images": "samples", "nfe": 9},
        {"metric": "frechet_distance", "value": 2.0, "mark": "biased", **about, "images": "real", "dataset": "e"},
        {"metric": "precision", "value": 0.25, **about, "images": "real"},
    ]
    (table,) = make_tables(records)
    assert table.rows == [["samples", "1,000", "9", "refused [1]", "0.5"], ["real", "1,000", "", "2 [2] [3]", "0.25"]]
    assert table.notes == ["[1] too few", "[2] biased", "[3] against 50 images of e, train"]
    assert "| samples | 1,000 | 9 | refused [1] | 0.5 |" in markdown(table)


def test_copies_are_found_among_images_that_differ_by_one_value():
    images = torch.randint(256, (60, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    near = images.clone()
    near[:, 0, 0, 0] ^= 1
    distances, indices = nearest(pixels(images), pixels(torch.cat([near, images])), "")
    assert (distances == 0).all() and indices.tolist() == list(range(60, 120))


@pytest.mark.parametrize("channels", [2, 4])
def test_bands_are_not_saved_as_opacity(tmp_path, channels):
    images = torch.randint(256, (3, channels, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    save_images(images, tmp_path)
    for k, image in enumerate(images):
        assert np.array_equal(np.load(tmp_path / f"{k:06d}.npy"), image.numpy())


class OneOfTwo:
    """A process of two, which waits by doing what is given."""

    num_processes = 2

    def __init__(self, process_index, *meanwhile):
        self.process_index, self.is_main_process, self.meanwhile = process_index, process_index == 0, list(meanwhile)

    def wait_for_everyone(self):
        if self.meanwhile:
            self.meanwhile.pop(0)()


def test_processes_share_a_folder_into_which_another_evaluation_writes(tmp_path, accelerator):
    """Each looks for itself at what is there already, and may see another state of it than the other."""

    def square(part):
        return {"x": torch.tensor([k**2 for k in part])}

    def compute(count, process):
        return compute_in_shards(square, tmp_path, {}, count, 2, process, "")["x"].tolist()

    second = OneOfTwo(1)
    first = OneOfTwo(0, lambda: compute(2, accelerator), lambda: compute(8, second))
    assert compute(8, first) == [k**2 for k in range(8)]


def test_samples_of_a_folder_are_in_random_order():
    images = torch.arange(100)[:, None, None, None].expand(-1, 1, 2, 2).byte()
    data = ImageData(images, None, None, [], "name", PixelFormat())
    samples = as_samples(data, 3)
    assert samples.images[:, 0, 0, 0].sort().values.tolist() == list(range(100))
    assert samples.images[:50].float().mean() == pytest.approx(49.5, abs=4 * 29 / 50**0.5)
    assert torch.equal(as_samples(data, 3).images, samples.images)
