"""Linear measurements: adjoint, pseudo-inverse and solver against their definitions and dense matrices."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d

from sde_diffusers.operators import (
    BOUNDARIES,
    Bands,
    Bicubic,
    Convolution,
    Downsampling,
    Gamma,
    GaussianBlur,
    Grayscale,
    LinearOperator,
    Mask,
    MaskedFourier,
    Operator,
    Radon,
    Saturation,
    box_mask,
    from_deepinv,
    random_mask,
    stroke_mask,
)
from sde_diffusers.operators.least_squares import chebyshev, least_residual

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
    "Gaussian blur of what is seen": lambda: GaussianBlur(0.7, "valid"),
    "Gaussian blur of periodic images": lambda: GaussianBlur(1.5, "circular"),
    "convolution": lambda: tight(Convolution(uneven_kernel())),
    "convolution of what is seen": lambda: tight(Convolution(uneven_kernel(), "valid")),
    "periodic convolution": lambda: Convolution(uneven_kernel(), "circular"),
    "periodic motion blur": lambda: Convolution(torch.eye(5) / 5, "circular"),
    "bands": lambda: bound(Bands([2, 0])),
    "bicubic": lambda: Bicubic(2),
    "Fourier samples": lambda: MaskedFourier(random_mask((2, 1, 8, 12), 0.6, generator())),
    "function": lambda: tight(LinearOperator.from_function(mixed, SHAPE[1:])),
    "composition": lambda: tight(bound(Mask(box_mask(4, 6, (0, 0, 2, 3))) @ Bicubic(2) @ Bands([1]))),
}


def mixed(x):
    """Differences of neighbours, weighed over channels: measurements of three dimensions, (N, H, W - 1)."""
    weights = torch.tensor([0.5, -1.0, 2.0]).to(x)
    return torch.einsum("nchw,c->nhw", x.diff(dim=-1) + 0.1 * x[..., :-1], weights)


def bound(operator):
    return operator.for_images(SHAPE)


def tight(operator):
    operator.tolerance = 1e-13
    return operator


@pytest.fixture(params=OPERATORS, name="operator")
def _operator(request):
    return OPERATORS[request.param]()


def matrix(operator):
    """The dense matrix of an operator for the first image, (measurements, values)."""
    one = (1, *SHAPE[1:])
    operator = first(operator)
    columns = operator(torch.eye(288, dtype=torch.float64).view(288, *SHAPE[1:]))
    assert columns.shape == (288, *operator.measurement_shape(one)[1:])
    return columns.flatten(1).T


def first(operator):
    """The operator of the first image."""
    if isinstance(operator, Mask):
        return Mask(operator.mask[:1])
    return MaskedFourier(operator.sampled[:1]) if isinstance(operator, MaskedFourier) else operator


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
    operator = first(operator)
    x = torch.randn(1, *SHAPE[1:], generator=generator(1), dtype=torch.float64)
    y = operator(x)
    solved = operator.solve(y, 0.7, 0.3).flatten()
    expected = torch.linalg.solve(0.7 * a @ a.T + 0.3 * torch.eye(len(a)).double(), y.flatten())
    torch.testing.assert_close(solved, expected, rtol=0, atol=1e-10)
    ridge = operator.ridge(y, 0.7, 0.3).flatten()
    torch.testing.assert_close(ridge, a.T @ expected, rtol=0, atol=1e-10)


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
    assert Downsampling(2).count(SHAPE).tolist() == [3 * 4 * 6] * 2


def test_means_of_a_million_pixels_are_exact_to_rounding():
    operator, y = Downsampling(1024), torch.rand(1, 1, 1, 2, generator=generator())
    torch.testing.assert_close(operator(operator.adjoint(y)), operator.gram * y, rtol=1e-6, atol=0)


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
    for boundary in BOUNDARIES:
        inside = moved[..., 1:-1, 1:-1] if boundary == "valid" else moved
        torch.testing.assert_close(Convolution(kernel, boundary)(point), inside, atol=1e-6, rtol=0)
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
    for arguments in ({"strokes": 0}, {"strokes": 2.5}, {"thickness": -3}, {"height": 8.5}):
        name = next(iter(arguments))
        with pytest.raises(ValueError, match=f"`{name}` must be a whole number above 0, but is {arguments[name]}"):
            stroke_mask(**{"height": 40, "width": 60, **arguments})
    with pytest.raises(ValueError, match="`height`"):
        box_mask(8.5, 12, (2, 3, 5, 9))


def test_bicubic_is_that_of_pil():
    image = torch.rand(24, 36, generator=generator())
    for factor in (2, 3, 4):
        small = Image.fromarray(image.numpy()).resize((36 // factor, 24 // factor), Image.Resampling.BICUBIC)
        found = Bicubic(factor)(image[None, None])[0, 0]
        torch.testing.assert_close(found, torch.from_numpy(np.array(small)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_boundaries_are_those_of_torch_and_numpy(boundary):
    """An odd and an even kernel, larger than what is inside of it, against padded images; a Gaussian's two axes."""
    x = torch.rand(1, 1, 6, 7, generator=generator(), dtype=torch.float64)
    mode = {"zero": "constant", "circular": "wrap", "replicate": "edge"}.get(boundary, boundary)
    for h, w in ((5, 3), (2, 4)):
        kernel = torch.rand(h, w, generator=generator(), dtype=torch.float64)
        width = [(side - 1 - side // 2, side // 2) for side in (h, w)]
        wide = x if boundary == "valid" else torch.from_numpy(np.pad(x[0, 0].numpy(), width, mode))[None, None]
        expected = conv2d(wide, kernel.flip(0, 1)[None, None])
        torch.testing.assert_close(Convolution(kernel, boundary)(x), expected)
    gaussian = torch.exp(-0.5 * (torch.arange(-2, 3) / 0.5).double() ** 2)
    kernel = torch.outer(gaussian, gaussian) / gaussian.sum() ** 2
    blurred = GaussianBlur(0.5, boundary)
    blurred.NEGLIGIBLE = 0.0
    torch.testing.assert_close(blurred(x), Convolution(kernel, boundary)(x), rtol=0, atol=1e-3)


def test_fourier_samples_are_those_of_the_transform():
    sampled = random_mask((8, 12), 0.5, generator())
    x = torch.rand(SHAPE, generator=generator(1), dtype=torch.float64)
    y = torch.complex(*MaskedFourier(sampled)(x).chunk(2, 1))
    z = torch.fft.fft2(x) / 96**0.5
    assert torch.equal(y, torch.where(sampled, z, 0)) and MaskedFourier(sampled).count(SHAPE).item() == 3 * (
        96 - sampled[::4, ::6].sum()  # real of any image
    )


def test_radon_sums_along_lines():
    x = torch.rand(2, 1, 9, 7, generator=generator(), dtype=torch.float64)
    operator = Radon([0.0, 90.0, 30.0]).for_images(x.shape)
    y = operator(x)
    assert y.shape == operator.measurement_shape(x.shape) == (2, 3, 11)
    torch.testing.assert_close(y.sum(2), x.sum((1, 2, 3))[:, None].expand(2, 3))
    torch.testing.assert_close(y[:, 0, 2:9], x[:, 0].sum(1))  # columns
    torch.testing.assert_close(y[:, 1, 1:10], x[:, 0].flip(1).sum(2))  # rows, upwards
    # the centre of mass of a projection is that of the image
    places = torch.arange(-5, 6).double()
    across, up = torch.arange(-3, 4).double(), torch.arange(4, -5, -1).double()
    angle = torch.deg2rad(torch.tensor(30.0))
    moment = (x[:, 0] * (across * angle.cos() + up[:, None] * angle.sin())).sum((1, 2))
    torch.testing.assert_close((y[:, 2] * places).sum(1), moment, rtol=0, atol=1e-5)
    v = torch.randn(y.shape, generator=generator(1), dtype=torch.float64)
    assert (y * v).sum().item() == pytest.approx((x * operator.adjoint(v)).sum().item(), rel=1e-12)
    assert len(Radon(20).angles) == 20


class OwnBlur(LinearOperator):
    """All that is needed."""

    def __call__(self, x):
        return 0.5 * x + 0.25 * (x.roll(1, 3) + x.roll(-1, 3))


def test_an_operator_needs_no_more_than_a():
    own, known = OwnBlur().for_images(SHAPE), Convolution([[0.25, 0.5, 0.25]], "circular")
    x, y = draw_pair(known)
    own.tolerance = 1e-12
    assert own.measurement_shape(SHAPE) == SHAPE and own.count(SHAPE).tolist() == [288, 288]
    torch.testing.assert_close(own.adjoint(y), known.adjoint(y))
    seen = known.attainable(y)
    torch.testing.assert_close(own.solve(seen, 0.7, 0.1), known.solve(seen, 0.7, 0.1))
    for name in ("pseudo_inverse", "attainable"):
        torch.testing.assert_close(getattr(own, name)(y), getattr(known, name)(y), rtol=0, atol=1e-8)
    torch.testing.assert_close(own.consistent(x, known(y)), known.consistent(x, known(y)), rtol=0, atol=1e-8)
    composed = Mask(random_mask(SHAPE[2:], 0.5, generator())) @ own
    assert (composed.tolerance, composed.iterations) == (1e-12, LinearOperator.iterations)
    assert (Gamma(2.0) @ own).at(x.sigmoid()).tolerance == 1e-12
    composed.iterations = 3
    assert composed.repeat(2).for_images(SHAPE).iterations == 3
    own.iterations = 3
    with pytest.raises(ValueError, match="`iterations`"):
        own.pseudo_inverse(y)
    with pytest.raises(ValueError, match="`image_shape`"):
        OwnBlur().adjoint(y)


def holed_in_place(x):
    x[..., 2:4] = 0
    return x


@pytest.mark.parametrize(
    ("f", "adjoint", "message"),
    [
        (lambda x: x.diff(dim=2), lambda y: y, "adjoint that returns real images"),
        (lambda x: 2 * x, lambda y: 1.98 * y, r"<A x, y> = .* relative difference 0\.01"),
        (lambda x: x.flip(3), lambda y: y, r"<x, A\* y>"),
        (torch.fft.fft2, None, "real numbers"),
        (lambda x: x.round().int(), None, "torch.float32"),
        (lambda x: x + 0.1, None, "measures 0.1 of an image that is 0"),
        (lambda x: x.abs(), None, "linear"),
        (lambda x: x * torch.rand(()), None, "from call to call"),
        (lambda x: x - x.mean(0), None, "each image for itself"),
        (lambda x: x / len(x), None, "alone as in a batch"),
        (lambda x: x.mean(0, keepdim=True), None, "one measurement for each image"),
        (lambda x: x.sum((1, 2, 3)), None, "two or more dimensions"),
        (lambda x: x.log(), None, "NaN"),
        (lambda x: [x], None, "tensor"),
        (lambda x: x @ torch.ones(3, 3), None, "does not measure 2 images"),
        (lambda x: torch.from_numpy(2 * x.numpy()), None, "adjoint"),
        (lambda x: 2 * x.detach(), None, "adjoint"),
        (lambda x: 1e-17 * x, None, r"from 1e-15 to 1e\+15 .* measures .*e-17"),
        (lambda x: 1e17 * x, None, r"measures .*e\+17"),
        (holed_in_place, None, "in place"),
        (lambda x: (x.data.mul_(0.5), 2 * x)[1], None, "in place"),
        (lambda x: 1 * x, lambda y: (1 * y, y.add_(1))[0], "in place"),
    ],
)
def test_functions_that_are_no_operators_are_refused(f, adjoint, message):
    with pytest.raises(ValueError, match=message):
        LinearOperator.from_function(f, SHAPE[1:], adjoint)


class Square(torch.autograd.Function):
    """Differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v):
        return 2 * ctx.saved_tensors[0] * v


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x.pow_(2), "in place"),
        (lambda x: x.clamp_(0, 1), "in place"),
        (lambda x: (x.data.clamp_(0.2, 0.8), 1 * x)[1], "in place"),
        (lambda x: (8 * x).round() / 8, "derivative 0 everywhere.*`Quantization`"),
        (lambda x: (x > 0.5).float(), "can't be differentiated.*detach"),
        (Square.apply, "differentiated twice"),
        (lambda x: x.sqrt(), r"NaN of images in \[-0.* beyond \[0, 1\]"),
        (lambda x: x.asin(), r"NaN of images in \[-0.* beyond \[0, 1\]"),
        (lambda x: (x * (x > 0)).sqrt(), "finite derivative"),
    ],
)
def test_functions_that_are_no_nonlinear_operators_are_refused(f, message):
    with pytest.raises(ValueError, match=f"`f`.*{message}"):
        Operator.from_function(f, SHAPE[1:])


def test_functions_of_values_in_the_unit_range_are_continued_beyond():
    x = torch.tensor([-0.4, 0.36, 1.3]).view(1, 1, 1, 3)
    root = Operator.from_function(lambda x: x.clamp(1e-4, 1).sqrt(), (1, 1, 3))
    torch.testing.assert_close(root(x).flatten(), torch.tensor([0.01, 0.6, 1.0]))
    rounded = Operator.from_function(lambda x: x + ((8 * x).round() / 8 - x).detach(), (1, 1, 3))
    torch.testing.assert_close(rounded.at(x)(x), x)


def test_functions_outside_torch_have_their_adjoint():
    def doubled(x):
        return torch.from_numpy(2 * x.numpy())

    operator = LinearOperator.from_function(doubled, SHAPE[1:], doubled)
    y = torch.rand(SHAPE, generator=generator())
    torch.testing.assert_close(operator.pseudo_inverse(y), y / 2)


class Physics:
    """As `deepinv.physics.LinearPhysics` has it."""

    def A(self, x):  # noqa: N802
        return x.flip(3)

    A_adjoint = A


def test_physics_of_deepinv():
    x = torch.rand(SHAPE, generator=generator())
    assert torch.equal(from_deepinv(Physics(), SHAPE[1:]).adjoint(x), x.flip(3))


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
        (lambda: Convolution(torch.ones(3, 3), "mirror"), "boundary"),
        (lambda: GaussianBlur(3.0, "valid").measurement_shape(SHAPE), "std"),
        (lambda: Bicubic(1.5), "factor"),
        (lambda: Bands([0, 0]), "bands"),
        (lambda: Bands([3]).measurement_shape(SHAPE), "bands"),
        (lambda: Radon([]), "angles"),
        (lambda: Radon(3).measurement_shape(SHAPE), "Radon"),
        (lambda: MaskedFourier(torch.ones(8, 12)), "sampled"),
        (lambda: MaskedFourier(torch.zeros(8, 12, dtype=torch.bool)), "sampled"),
        (lambda: MaskedFourier(torch.ones(8, 8, dtype=torch.bool)).measurement_shape(SHAPE), "sampled"),
        (lambda: LinearOperator.from_function(lambda x: x, (8, 12)), "shape"),
        (lambda: Convolution(torch.ones(9, 3)).measurement_shape(SHAPE), "kernel"),
        (lambda: Convolution(torch.ones(3, 3) * (1 + 1j)), "kernel"),
        (lambda: Convolution(np.ones((3, 3)) * (1 + 1j), "circular"), "kernel"),
        (lambda: Convolution([[1j]]), "kernel"),
        (lambda: Grayscale(torch.tensor([0.3 + 1j, 0.3, 0.4])), "weights"),
        (lambda: Grayscale("abc"), "weights"),
        (lambda: Grayscale(None), "weights"),
        (lambda: Radon(-3), "angles"),
        (lambda: Radon(True), "angles"),
        (lambda: Radon("abc"), "angles"),
        (lambda: Radon(None), "angles"),
        (lambda: Radon([1j]), "angles"),
        (lambda: Bands(1), "bands"),
        (lambda: Bands("ab"), "bands"),
        (lambda: Bands([1.5]), "bands"),
        (lambda: box_mask(8, 8, (1, 2, 3)), "box"),
        (lambda: box_mask(8, 8, (0, 0, 4, 4.5)), "box"),
        (lambda: random_mask((8,), 0.5), "shape"),
        (lambda: random_mask(8, 0.5), "shape"),
        (lambda: random_mask((8, 8), "x"), "share"),
        (lambda: Saturation(1.0, "a", "b"), "low"),
        (lambda: Saturation(1.0, float("nan"), 1), "low"),
        (lambda: LinearOperator.from_function(lambda x: x, 8), "shape"),
        (lambda: LinearOperator.from_function(lambda x: x, None), "shape"),
        (lambda: Operator.from_function(lambda x: x, (1, 8.0, 8)), "shape"),
        (lambda: LinearOperator.from_function(lambda x: 2 * x, SHAPE[1:], 3), "adjoint"),
        (lambda: LinearOperator.from_function(lambda x: 2 * x, SHAPE[1:], lambda: 1), "adjoint"),
        (lambda: LinearOperator.from_function(lambda x: 2 * x, SHAPE[1:], lambda y: y[:, :, 99]), "adjoint"),
    ],
)
def test_errors_name_the_argument(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()


@pytest.mark.parametrize("other", [3, torch.eye(8), Mask], ids=["a number", "a matrix", "a class"])
def test_operators_are_composed_with_operators_only(other):
    with pytest.raises(TypeError, match="A @ B is of two operators, but B is "):
        Grayscale() @ other


def test_numbers_of_numpy_are_numbers():
    shape = tuple(np.array(SHAPE[1:]))
    assert LinearOperator.from_function(lambda x: 2 * x, shape).image_shape == SHAPE[1:]
    assert torch.equal(Radon(np.int64(3)).angles, Radon(3).angles)
    assert torch.equal(box_mask(8, 12, np.array([2, 3, 5, 9])), box_mask(8, 12, (2, 3, 5, 9)))
    assert Bands(np.array([2, 0])).bands == [2, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_half_precision(name, dtype):
    operator = OPERATORS[name]().for_images(SHAPE)
    x = torch.rand(SHAPE, generator=generator()).to(dtype)
    y = operator(x)
    assert y.dtype == operator.adjoint(y).dtype == dtype
    near = {"rtol": 0, "atol": 16 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y.float(), operator(x.float()), **near)
    torch.testing.assert_close(operator.adjoint(y).float(), operator.adjoint(y.float()), **near)


def test_what_lies_outside_of_the_range_of_a_singular_system_is_not_solved_for():
    root = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outside = torch.linalg.qr(root, mode="complete").Q[:, 6:].sum(1)  # which no w gives
    b = w @ root @ root.T + 1e-5 * outside
    solved = least_residual(lambda d: (d @ root @ root.T, d @ root), b, 30)
    torch.testing.assert_close(solved, w @ root, rtol=0, atol=1e-9)


def test_systems_that_are_not_symmetric_are_solved_and_never_worse_than_not_at_all():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    b = torch.randn(2, 6, generator=generator, dtype=torch.float64)

    def product(d):
        return torch.einsum("nij,nj->ni", matrix, d)

    left = [
        (b - product(least_residual(lambda d: (product(d), d), b, steps))).norm(dim=1) / b.norm(dim=1)
        for steps in range(1, 7)
    ]
    assert all((now <= before + 1e-12).all() for before, now in zip([1, *left], left, strict=False))
    assert left[-1].max() < 1e-9


def test_a_preconditioner_finds_what_small_singular_values_hide():
    """S = A V A' with singular values from 1 to 1e-3: ten steps from (A A')^-1, hundreds without."""
    s = torch.logspace(0, -3, 64, dtype=torch.float64)[None]
    v = 1 + torch.rand(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.randn(2, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = []
    for precondition in (lambda r: r / s**2, None):
        solution = least_residual(lambda w: (s**2 * v * w, w), s**2 * v * expected, 15, 1e-9, 0.0, precondition)
        errors.append((solution - expected).abs().max().item())
    assert errors[0] < 1e-3 and errors[1] > 0.3


def test_a_polynomial_of_a_system_is_like_its_inverse():
    """Symmetric and positive; exact to the bound of Chebyshev's polynomials between the two eigenvalues."""
    generator, low, high = torch.Generator().manual_seed(0), 0.05, 2.0
    basis = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64))[0]
    values = torch.cat([torch.linspace(low, high, 20, dtype=torch.float64), torch.tensor([1e-4, 1e-3, 0.01, 0.04])])
    scale = 0.5 + torch.rand(24, generator=generator, dtype=torch.float64)
    system = basis * values @ basis.T * scale * scale[:, None]  # P S has these eigenvalues, for P = 1 / scale^2

    def solved(steps):
        b = torch.eye(24, dtype=torch.float64)
        return chebyshev(lambda w: w @ system, b, steps, low, high, lambda w: w / scale**2)

    for steps in (1, 5, 20):
        p = solved(steps) * scale * scale[:, None]
        torch.testing.assert_close(p, p.T)
        found = (basis.T @ p @ basis).diagonal() * values
        middle, half = (high + low) / 2, (high - low) / 2
        bound = 1 / math.cosh(steps * math.acosh(middle / half))
        assert ((1 - found[:20]).abs() <= bound + 1e-9).all() and (found > 0).all() and (found[20:] < 1).all()


@pytest.mark.parametrize("boundary", [boundary for boundary in BOUNDARIES if boundary != "circular"])
def test_a_small_convolution_is_its_matrix(boundary):
    """In closed form what the iterations of a larger one find: A, A', A+ and systems with A A'."""
    kernel = torch.rand(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    kernel[1, 1] += 2  # so that no singular value is negligible
    plain, shape = Convolution(kernel, boundary), (2, 3, 6, 7)
    small = plain.for_images(shape)
    assert small.direct and not plain.direct
    x = torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y = plain(x)
    torch.testing.assert_close(small(x), y)
    plain.image_shape, plain.tolerance = shape[1:], 1e-10
    torch.testing.assert_close(small.adjoint(y), plain.adjoint(y))
    torch.testing.assert_close(small.pseudo_inverse(y), plain.pseudo_inverse(y), rtol=0, atol=1e-6)
    torch.testing.assert_close(small.solve(y, 2.0, 0.3), plain.solve(y, 2.0, 0.3), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "draw", [lambda seed: random_mask((4, 4), 0.5, seed), lambda seed: stroke_mask(8, 8, generator=seed)]
)
def test_a_seed_is_no_generator_of_masks(draw):
    with pytest.raises(ValueError, match="`generator`"):
        draw(3)
