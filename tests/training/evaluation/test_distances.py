"""Distances against closed forms, constructed sets, and other implementations where they are installed."""

import math

import pytest
import torch

from evaluation import distances
from evaluation.distances import (
    FeatureStatistics,
    bootstrap_frechet,
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(dimension, seed=0):
    root = normal(dimension, dimension, seed=seed)
    return root @ root.T / dimension


def gaussian(mean, covariance, count=10**6):
    return FeatureStatistics(torch.as_tensor(mean, dtype=torch.float64), covariance, count)


# ---- statistics ----------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_torch_however_they_come_in_batches():
    features = 3 * normal(1000, 5) + 100
    whole = FeatureStatistics.from_features(features)
    torch.testing.assert_close(whole.mean, features.mean(0), rtol=0, atol=1e-11)
    torch.testing.assert_close(whole.covariance, features.T.cov(), rtol=0, atol=1e-11)
    batches = iter([features[:1], features[1:300], features[300:]])  # one image alone has no covariance
    streamed = FeatureStatistics.from_batches(batches)
    torch.testing.assert_close(streamed.mean, whole.mean, rtol=0, atol=1e-11)
    torch.testing.assert_close(streamed.covariance, whole.covariance, rtol=0, atol=1e-11)
    assert streamed.count == whole.count == 1000 and whole.dimension == 5


def test_float32_features_are_summed_in_float64():
    features = (normal(20_000, 3) * 1e-2 + 1e3).float()
    expected = features.double().T.cov()
    torch.testing.assert_close(
        FeatureStatistics.from_batches(features.split(64)).covariance, expected, rtol=1e-7, atol=0
    )


def test_reliable_from_ten_images_for_each_dimension():
    assert gaussian(torch.zeros(4), torch.eye(4), count=40).is_reliable
    assert not gaussian(torch.zeros(4), torch.eye(4), count=39).is_reliable


def test_saved_statistics_come_back_with_their_description(tmp_path):
    statistics = FeatureStatistics.from_features(normal(50, 4))
    path = tmp_path / "statistics.safetensors"
    for _ in range(2):  # also over an old file
        statistics.save(path, feature_space="net-1", dataset="garments", split="train", resolution=28)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = FeatureStatistics.load(path, feature_space="net-1")
    assert torch.equal(loaded.mean, statistics.mean) and torch.equal(loaded.covariance, statistics.covariance)
    assert loaded.count == 50 and frechet_distance(loaded, statistics) < 1e-12
    assert loaded.description == {
        "feature_space": "net-1",
        "dataset": "garments",
        "split": "train",
        "resolution": "28",
    }
    with pytest.raises(ValueError, match="'net-1', not of 'net-2'"):
        FeatureStatistics.load(path, feature_space="net-2")


def test_files_that_hold_no_statistics_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        FeatureStatistics.load(tmp_path / "none.safetensors")
    for name, content in (("text", b"no tensors at all"), ("empty", b"\x02\0\0\0\0\0\0\0{}")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="no feature statistics"):
            FeatureStatistics.load(tmp_path / name)


@pytest.mark.parametrize(
    "features, message",
    [
        (torch.zeros(1, 4), "at least 2 images, got 1"),
        (torch.zeros(0, 4), "N >= 1"),
        (torch.zeros(4), "shape"),
        (torch.tensor([[0.0, math.nan], [1.0, 2.0]]), "1 rows are not"),
    ],
)
def test_features_without_a_covariance_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.from_features(features)


def test_batches_of_different_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        FeatureStatistics.from_batches([torch.zeros(3, 4), torch.zeros(3, 5)])


# ---- Frechet distance ----------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_on_common_axes():
    # |m_a - m_b|^2 + sum (s_a - s_b)^2 where the covariances commute
    axes = torch.linalg.qr(normal(6, 6)).Q
    s_a, s_b = torch.tensor([1.0, 2, 3, 4, 5, 0]).double(), torch.tensor([2.0, 2, 0, 1, 7, 1]).double()
    a = gaussian(torch.arange(6), axes * s_a.square() @ axes.T)
    b = gaussian(torch.zeros(6), axes * s_b.square() @ axes.T)
    expected = 55 + (s_a - s_b).square().sum().item()
    # A root of a rounded zero eigenvalue has the size 1e-8.
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-8)


def test_frechet_distance_of_gaussians_in_the_plane():
    # tr (AB)^1/2 = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2 matrices
    a, b = covariance(2, seed=1), covariance(2, seed=2)
    root = (torch.trace(a @ b) + 2 * torch.det(a @ b).sqrt()).sqrt()
    expected = (a.trace() + b.trace() - 2 * root + 2).item()
    assert frechet_distance(gaussian([1, 0], a), gaussian([0, 1], b)) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_a_distribution_from_itself_is_zero_even_if_degenerate():
    features = normal(200, 20)
    features[:, 10:] = features[:, :10]
    statistics = FeatureStatistics.from_features(features)
    assert 0 <= frechet_distance(statistics, statistics) < 1e-12


def test_frechet_distance_agrees_with_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = covariance(30, seed=1), covariance(30, seed=2)
    expected = (a.trace() + b.trace()).item() - 2 * linalg.sqrtm((a @ b).numpy()).real.trace()
    assert frechet_distance(gaussian(torch.zeros(30), a), gaussian(torch.zeros(30), b)) == pytest.approx(expected)


def test_frechet_and_kernel_distance_agree_with_clean_fid():
    fid = pytest.importorskip("cleanfid.fid")
    x, y = normal(500, 8, seed=1), 1.1 * normal(400, 8, seed=2) + 0.2
    ours = frechet_distance(FeatureStatistics.from_features(x), FeatureStatistics.from_features(y))
    assert ours == pytest.approx(fid.fid_from_feats(x.numpy(), y.numpy()), rel=1e-8)
    theirs = fid.kernel_distance(x[:300].numpy(), y[:300].numpy(), num_subsets=1)  # whole sets: no randomness
    assert distances._squared_mmd(x[:300], y[:300]) == pytest.approx(theirs, rel=1e-8)


def test_incomparable_statistics_are_refused():
    a = gaussian(torch.zeros(3), torch.eye(3).double())
    with pytest.raises(ValueError, match="got 3 and 4"):
        frechet_distance(a, gaussian(torch.zeros(4), torch.eye(4).double()))
    with pytest.raises(ValueError, match="at least 4 images, got 3"):
        frechet_distance(a, gaussian(torch.zeros(3), torch.eye(3).double(), count=3))
    spaces = [FeatureStatistics(a.mean, a.covariance, 100, {"feature_space": name}) for name in ("one", "two")]
    with pytest.raises(ValueError, match="one feature space, got one and two"):
        frechet_distance(*spaces)


@pytest.mark.parametrize(
    "shift, of_mean, of_another, width",
    [(1.0, (0.88, 0.99), (0.7, 0.9), (0.85, 1.15)), (0.0, (0.97, 1.0), (0.88, 1.0), (1.3, 1.9))],
)
def test_what_bootstrap_intervals_cover(shift, of_mean, of_another, width):
    """Far from the reference, where the distance is nearly linear in the sample, its mean in about 95 % and another
    sample's distance in about 80 %; near 0 they are 1.6 times too wide."""
    reference = gaussian(torch.zeros(3), torch.eye(3).double())
    samples = [normal(300, 3, seed=seed) + shift for seed in range(80)]
    exact = torch.tensor([frechet_distance(FeatureStatistics.from_features(x), reference) for x in samples])
    intervals = [bootstrap_frechet(x, reference, 50, torch.Generator().manual_seed(k)) for k, x in enumerate(samples)]
    low, high = torch.tensor(intervals).T
    assert ((low < exact) & (exact < high)).all()
    assert of_mean[0] <= ((low < exact.mean()) & (exact.mean() < high)).double().mean() <= of_mean[1]
    another = (low[:, None] < exact) & (exact < high[:, None])
    assert of_another[0] <= another.double().mean() <= of_another[1]
    assert width[0] <= (high - low).mean() / 3.92 / exact.std() <= width[1]


def test_bootstrap_refuses_too_few():
    reference = gaussian(torch.zeros(3), torch.eye(3).double())
    with pytest.raises(ValueError, match="resamples must be at least 20, got 3"):
        bootstrap_frechet(normal(50, 3), reference, resamples=3)
    with pytest.raises(ValueError, match="at least 4 images, got 3"):
        bootstrap_frechet(normal(3, 3), reference)


# ---- kernel distance -----------------------------------------------------------------------------------------------


def test_squared_mmd_is_unbiased_where_its_expectation_is_known():
    # One dimension, kernel (xy + 1)^3: MMD^2 = 3 (m1 - n1)^2 + 3 (m2 - n2)^2 + (m3 - n3)^2 for the raw moments m, n:
    # shift, s^2 + shift^2, 3 s^2 shift + shift^3 of N(shift, s^2), and 0, s^2, 0 of N(0, s^2)
    count, shift, s = 4000, 0.5, 0.5
    expected = 3 * shift**2 + 3 * shift**4 + (3 * s**2 * shift + shift**3) ** 2
    x, y = s * normal(count, 5, 1, seed=1), s * normal(count, 5, 1, seed=2)
    for offset, value in ((shift, expected), (0.0, 0.0)):
        estimates = torch.tensor([distances._squared_mmd(a + offset, b) for a, b in zip(x, y, strict=True)])
        error = estimates.std() / count**0.5
        assert abs(estimates.mean() - value) < 4 * error and error < 0.05


def test_standard_error_of_the_kernel_distance_bounds_its_variation():
    results = [
        kernel_distance(normal(200, 4, seed=seed), normal(200, 4, seed=1000 + seed), 20, 50, torch.Generator())
        for seed in range(60)
    ]
    means = torch.tensor([result.mean for result in results])
    errors = torch.tensor([result.standard_error for result in results])
    assert abs(means.mean()) < 4 * means.std() / 60**0.5  # equal distributions: zero in expectation
    assert means.std() < 1.2 * errors.square().mean().sqrt()


def test_kernel_distance_is_drawn_by_its_generator():
    x, y = normal(100, 3, seed=1), normal(120, 3, seed=2)
    first, again, other = (kernel_distance(x, y, 5, 20, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("options", [{"subset_size": 51}, {"subset_size": 1}, {"subsets": 1, "subset_size": 10}])
def test_kernel_distance_refuses(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        kernel_distance(normal(100, 3), normal(200, 3), **options)


# ---- neighbourhoods ------------------------------------------------------------------------------------------------


def circle(count, centre=0.0, radius=1.0):
    angles = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    return radius * torch.stack([angles.cos(), angles.sin()], 1) + centre


def test_of_a_set_and_itself():
    points = normal(300, 4)
    assert precision_recall(points, points, k=3) == (1.0, 1.0)
    assert density_coverage(points, points, k=5).coverage == 1.0


def test_of_distant_sets():
    assert precision_recall(circle(50), circle(50, centre=10)) == (0.0, 0.0)
    assert density_coverage(circle(50), circle(50, centre=10)) == (0.0, 0.0)


def test_lost_modes_cost_recall_and_coverage_and_outliers_cost_precision():
    real = torch.cat([circle(40), circle(40, centre=10)])
    one_mode, with_outliers = circle(40), torch.cat([real, circle(80, centre=-10)])
    assert precision_recall(one_mode, real) == (1.0, 0.5)
    assert density_coverage(one_mode, real).coverage == 0.5
    assert precision_recall(with_outliers, real) == (0.5, 1.0)
    assert density_coverage(with_outliers, real).density == pytest.approx(density_coverage(real, real).density / 2)


def test_numbers_that_can_be_counted_on_a_line():
    # Real points 0, 1, 3, 7 with k = 1 have the radii 1, 1, 2, 4; generated ones 1.5, 4.5, 12 the radii 3, 3, 7.5.
    real, generated = torch.tensor([[0.0], [1], [3], [7]]), torch.tensor([[1.5], [4.5], [12]])
    # 1.5 lies near 1 and 3; 4.5 near 3 and 7; 12 near none. 0, 1 and 3 lie near 1.5, 7 near 4.5.
    assert precision_recall(generated, real, k=1) == (pytest.approx(2 / 3), 1.0)
    assert density_coverage(generated, real, k=1) == (pytest.approx(4 / 3), 0.75)


def test_expected_coverage_of_equal_distributions():
    # 1 - (M-1)...(M-k) / ((N+M-1)...(N+M-k)), whatever the distribution: Naeem et al., lemma 2
    n, m, k = 60, 40, 2
    expected = 1 - math.prod((m - i) / (n + m - i) for i in range(1, k + 1))
    values = [density_coverage(normal(n, 3, seed=s), normal(m, 3, seed=10_000 + s), k).coverage for s in range(300)]
    values = torch.tensor(values)
    assert abs(values.mean() - expected) < 4 * values.std() / 300**0.5


def test_chunks_change_nothing(monkeypatch):
    features, reference = normal(70, 3, seed=1), normal(90, 3, seed=2)
    whole = precision_recall(features, reference), density_coverage(features, reference)
    monkeypatch.setattr(distances, "CHUNK", 90 * 7)
    assert (precision_recall(features, reference), density_coverage(features, reference)) == whole


def test_a_common_offset_costs_no_digits():
    features, reference = normal(60, 3, seed=1), normal(60, 3, seed=2)
    assert precision_recall(features + 1e6, reference + 1e6) == precision_recall(features, reference)


@pytest.mark.parametrize("compare", [precision_recall, density_coverage])
def test_neighbourhoods_refuse(compare):
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        compare(normal(9, 2), normal(9, 2), k=0)
    with pytest.raises(ValueError, match="features .* N >= 4"):
        compare(normal(3, 2), normal(9, 2), k=3)
    with pytest.raises(ValueError, match=r"reference .*\(N, 2\)"):
        compare(normal(9, 2), normal(9, 3), k=3)
