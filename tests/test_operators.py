"""Linear measurements: adjoint, pseudo-inverse and solver against their definitions and dense matrices."""

import pytest
import torch

from sde_diffusers.operators import (
    Convolution,
    Downsampling,
    GaussianBlur,
    Grayscale,
    Mask,
    box_mask,
    random_mask,
    stroke_mask,
)

SHAPE = (2, 3, 8, 12)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def uneven_kernel():
    return torch.rand(3, 4, generator=generator()).double() / 6


OPERATORS = {
    "box": lambda: Mask(box_mask(8, 12, (2, 3, 5, 9))),
    "random pixels of each image": lambda: Mask(random_mask((2, 1, 8, 12), 0.75, generator())),
    "random values": lambda: Mask(random_mask(SHAPE, 0.3, generator())),
    "strokes": lambda: Mask(stroke_mask(8, 12, generator=generator())),
    "grayscale": lambda: Grayscale(),
    "luma": lambda: Grayscale((0.299, 0.587, 0.114)),
    "downsampling": lambda: Downsampling(4),
    "weak Gaussian blur": lambda: GaussianBlur(0.5),
    "Gaussian blur": lambda: GaussianBlur(1.5),
    "blur beyond the image": lambda: GaussianBlur(4.0),
    "convolution": lambda: Convolution(uneven_kernel()),
    "motion blur": lambda: Convolution(torch.eye(5) / 5),
}


@pytest.fixture(params=OPERATORS, name="operator")
def _operator(request):
    return OPERATORS[request.param]()


def matrix(operator):
    """The dense matrix of an operator for the first image, (measurements, values)."""
    one = (1, *SHAPE[1:])
    if isinstance(operator, Mask):
        operator = Mask(operator.mask[:1])
    columns = operator(torch.eye(288, dtype=torch.float64).view(288, *SHAPE[1:]))
    assert columns.shape == (288, *operator.measurement_shape(one)[1:])
    return columns.flatten(1).T


def draw_pair(operator):
    x = torch.randn(SHAPE, generator=generator(1), dtype=torch.float64)
    return x, torch.randn(operator.measurement_shape(SHAPE), generator=generator(2), dtype=torch.float64)


def test_adjoint(operator):
    x, y = draw_pair(operator)
    left, right = (operator(x) * y).sum(), (x * operator.adjoint(y)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-12)


def test_pseudo_inverse(operator):
    """All four Moore-Penrose conditions; the last two say that A A+ and A+ A are symmetric."""
    x, y = draw_pair(operator)
    inverse = operator.pseudo_inverse
    torch.testing.assert_close(operator(inverse(operator(x))), operator(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(inverse(operator(inverse(y))), inverse(y), rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(operator.attainable(y), operator(inverse(y)), rtol=0, atol=1e-11)
    x_2, y_2 = operator.adjoint(y), operator(x)
    assert (operator(inverse(y)) * y_2).sum().item() == pytest.approx((y * operator(inverse(y_2))).sum().item())
    assert (inverse(operator(x)) * x_2).sum().item() == pytest.approx((x * inverse(operator(x_2))).sum().item())


def test_solve_against_the_dense_matrix(operator):
    a = matrix(operator)
    if isinstance(operator, Mask):
        operator = Mask(operator.mask[:1])
    x = torch.randn(1, *SHAPE[1:], generator=generator(1), dtype=torch.float64)
    y = operator(x)
    solved = operator.solve(y, 0.7, 0.3).flatten()
    expected = torch.linalg.solve(0.7 * a @ a.T + 0.3 * torch.eye(len(a)).double(), y.flatten())
    torch.testing.assert_close(solved, expected, rtol=0, atol=1e-10)


def test_one_length_of_rows(operator):
    """A A' = c on the range of A where the operator says so."""
    if operator.gram is None:
        values = torch.linalg.svdvals(matrix(operator))
        assert values.max() > 1.1 * values[values > 1e-6].min()
    else:
        _, y = draw_pair(operator)
        y = operator(operator.adjoint(y))
        torch.testing.assert_close(operator(operator.adjoint(y)), operator.gram * y)


def test_consistent(operator):
    """The result measures y and differs from x only by what A sees."""
    x, _ = draw_pair(operator)
    y = operator(torch.randn(SHAPE, generator=generator(3), dtype=torch.float64))
    projected = operator.consistent(x, y)
    torch.testing.assert_close(operator(projected), y, rtol=0, atol=1e-10)
    unseen = projected - x - operator.pseudo_inverse(operator(projected - x))
    assert unseen.abs().max() < 1e-9


def test_observed_pixels_are_bit_for_bit_the_given_ones():
    mask = random_mask((8, 12), 0.5, generator())
    x, y = torch.rand(SHAPE, generator=generator(1)), torch.rand(SHAPE, generator=generator(2))
    out = Mask(mask).consistent(x, Mask(mask)(y))
    assert torch.equal(out[..., ~mask], y[..., ~mask]) and torch.equal(out[..., mask], x[..., mask])


def test_count():
    mask = random_mask((2, 1, 8, 12), 0.75, generator())
    assert Mask(mask).count(SHAPE).flatten().tolist() == [72.0, 72.0]  # 24 of 96 pixels, 3 channels
    assert Downsampling(2).count(SHAPE).item() == 3 * 4 * 6


def test_known_values():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert Downsampling(2)(image).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert Grayscale((0.5, 0.3, 0.2))(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)).item() == pytest.approx(1.7)
    # the paper's decoupling: the mean of three channels is 1 / sqrt(3) times the first row of an orthonormal matrix
    assert Grayscale().gram == pytest.approx(1 / 3)
    flat = torch.full((1, 1, 9, 9), 0.3)
    torch.testing.assert_close(GaussianBlur(2.0)(flat), flat)  # mirrored edges keep constant images
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    kernel = torch.tensor([[0.0, 0.2, 0.1], [0.3, 0.25, 0.0], [0.05, 0.1, 0.0]])
    moved = torch.zeros(1, 1, 9, 9)
    moved[..., 3:6, 3:6] = kernel
    torch.testing.assert_close(Convolution(kernel)(point), moved, atol=1e-6, rtol=0)
    blurred = GaussianBlur(1.0)(point)[0, 0, 4]
    ratio = torch.tensor(-0.5).exp().item()
    assert blurred[5].item() / blurred[4].item() == pytest.approx(ratio, abs=2e-3)  # but for negligible details


def test_masks():
    box = box_mask(8, 12, (2, 3, 5, 9))
    assert box.sum() == 18 and box[2, 3] and box[4, 8] and not box[5, 8] and not box[2, 9]
    pixels = random_mask((5, 1, 8, 12), 0.75, generator())
    assert pixels.sum((1, 2, 3)).tolist() == [72] * 5 and not torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels, random_mask((5, 1, 8, 12), 0.75, generator()))
    strokes = stroke_mask(40, 60, generator=generator())
    assert strokes.shape == (40, 60) and 0.01 < strokes.float().mean() < 0.5


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Mask(torch.ones(8, 8)), "mask"),
        (lambda: Mask(torch.ones(8, dtype=torch.bool)), "mask"),
        (lambda: Mask(box_mask(8, 8, (0, 0, 4, 4))).measurement_shape(SHAPE), "mask"),
        (lambda: Mask(torch.ones(3, 1, 8, 12, dtype=torch.bool)).measurement_shape(SHAPE), "mask"),
        (lambda: box_mask(8, 8, (4, 0, 4, 8)), "box"),
        (lambda: box_mask(8, 8, (0, 0, 9, 8)), "box"),
        (lambda: random_mask((8, 8), 1.0), "share"),
        (lambda: Grayscale((0.5, 0.6)), "weights"),
        (lambda: Grayscale((0.5, 0.5)).measurement_shape(SHAPE), "weights"),
        (lambda: Downsampling(1), "factor"),
        (lambda: Downsampling(3).measurement_shape(SHAPE), "factor"),
        (lambda: GaussianBlur(0.0), "std"),
        (lambda: Convolution(torch.zeros(3, 3)), "kernel"),
        (lambda: Convolution(torch.ones(3)), "kernel"),
        (lambda: Convolution(torch.ones(9, 3)).measurement_shape(SHAPE), "kernel"),
    ],
)
def test_errors_name_the_argument(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()
