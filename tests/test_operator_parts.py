"""What an operator says of its measurements: what is missing of them, and how images that have them are found."""

import numpy as np
import pytest
import torch
from test_restoration import seeded, unet_pipe
from torch.nn.functional import avg_pool2d

from sde_diffusers.operators import (
    JPEG,
    Bands,
    Bicubic,
    Convolution,
    Downsampling,
    FourierMagnitude,
    Gamma,
    GaussianBlur,
    Grayscale,
    LinearOperator,
    Mask,
    MaskedFourier,
    Radon,
    Saturation,
    box_mask,
    from_deepinv,
    random_mask,
)
from sde_diffusers.operators.checks import check_operator

SIZE = 8
BOX = torch.full((3, 3), 1 / 9)
HOLE = Mask(box_mask(SIZE, SIZE, (2, 1, 7, 7)))
RIGHT = Mask(box_mask(SIZE, SIZE, (0, 0, SIZE, 6)))


def images(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed))


def never_seen(operator, shape):
    """Of measurements of images (C, H, W), the values that no pixel changes, by each unit image in turn."""
    pixels = torch.eye(shape.numel()).view(-1, *shape)
    most = operator.for_images(pixels.shape)(pixels).abs().amax(0)
    return most < 1e-4 * most.max()


# ---- images that measure what is asked


@pytest.mark.parametrize(
    "operator",
    [
        Radon(12),
        LinearOperator.from_function(lambda x: avg_pool2d(x, 3, 1, 1), (1, 28, 28)),
        Convolution(torch.full((1, 5), 0.2)) @ Convolution(torch.full((5, 1), 0.2)),
    ],
    ids=["Radon", "box blur", "composition"],
)
def test_an_image_that_measures_it_already_is_left_as_it_is(operator):
    """What is left over of y is then rounding errors, whose solution has none of a tolerance of its own."""
    operator = operator.for_images((2, 1, 28, 28))
    y = operator(images(2, 1, 28, 28))
    once = operator.consistent(images(2, 1, 28, 28, seed=1), y)
    again = operator.consistent(once, y)
    assert (operator(again) - y).norm() < 1e-3 * y.norm()
    assert (again - once).norm() < 2e-2 * once.norm()
    mixed = operator.consistent(torch.cat([once[:1], images(1, 1, 28, 28, seed=2)]), y)  # one measures it, one doesn't
    assert (operator(mixed) - y).norm() < 1e-3 * y.norm()


@pytest.mark.parametrize("method", ["diffpir", "daps", "projection"])
def test_methods_that_impose_at_each_step_find_images_of_lines(method):
    operator, image = Radon(12), images(1, 1, 28, 28)
    y = operator(image)
    options = {"method": method, "num_inference_steps": 3, "output_type": "pt", "generator": seeded()}
    found = unet_pipe()(y, operator, image_size=28, **options).images
    assert (operator(found) - y).norm() < 0.2 * y.norm()  # clipped to [0, 1], not more


# ---- missing values


@pytest.mark.parametrize(
    "operator",
    [
        *(Convolution(BOX, boundary) @ HOLE for boundary in ("zero", "reflect", "circular", "valid")),
        GaussianBlur(0.4, "zero") @ HOLE,
        Bicubic(2) @ RIGHT,
        Downsampling(2) @ RIGHT,
        Radon([0.0, 90.0]) @ HOLE,
        MaskedFourier(random_mask((SIZE, SIZE), 0.5, seeded())) @ HOLE,
        Downsampling(2) @ (Convolution(BOX, "zero") @ RIGHT),
        Convolution(BOX) @ (Convolution(BOX) @ RIGHT),
    ],
    ids=lambda operator: type(operator.outer).__name__,
)
def test_rows_of_zeros_are_missing_whatever_rounding_makes_of_them(operator):
    shape = torch.Size((1, SIZE, SIZE))
    dead = never_seen(operator, shape)
    operator = operator.for_images((1, *shape))
    y = operator(images(1, *shape))
    assert torch.equal(operator.measured(torch.ones_like(y))[0] == 0, dead)
    assert operator.count((1, *shape)).item() == (~dead).sum().item()
    fill = torch.where(dead, 1e6, y)
    assert torch.equal(operator.measured(fill), operator.measured(y))


def test_some_of_these_have_such_rows():
    counted = [
        never_seen(op @ HOLE, torch.Size((1, SIZE, SIZE))).sum() for op in (Convolution(BOX), GaussianBlur(0.4))
    ]
    assert min(counted) >= 4


def test_values_in_small_units_are_no_rounding_errors():
    units = torch.ones(SIZE, SIZE).index_fill(0, torch.tensor([3]), 1e-9)
    operator = LinearOperator.from_function(lambda x: x * units, (1, SIZE, SIZE)) @ Convolution(BOX)
    operator = operator.for_images((1, 1, SIZE, SIZE))
    assert operator.count((1, 1, SIZE, SIZE)).item() == SIZE**2


@pytest.mark.parametrize(
    "operator, missing",
    [
        (Saturation(0.9) @ (Gamma(1.5) @ HOLE), HOLE.mask),
        (Saturation(0.9) @ Gamma(1.5) @ HOLE, HOLE.mask),
        (HOLE @ (Gamma(1.5) @ RIGHT), HOLE.mask | RIGHT.mask),
        (Gamma(1.5) @ Downsampling(2) @ RIGHT, RIGHT.mask[..., ::2, ::2]),
        (Downsampling(2) @ (Gamma(1.5) @ RIGHT), RIGHT.mask[..., ::2, ::2]),
    ],
)
def test_missing_values_of_nonlinear_operators(operator, missing):
    """However they are put in parentheses; what is there does not matter."""
    y = operator(images(1, 1, SIZE, SIZE))
    seen = operator.for_images((1, 1, SIZE, SIZE)).measured(torch.ones_like(y)) != 0
    assert torch.equal(seen, ~missing)
    restore = {"noise_std": 0.05, "num_inference_steps": 2, "output_type": "pt"}
    results = [
        unet_pipe()(torch.where(missing, fill, y), operator, generator=seeded(), **restore).images
        for fill in (0.0, 1.0, float("nan"))
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, "tensor"])
def test_inpainted_pixels_may_hold_anything(kind):
    image = images(1, SIZE, SIZE).numpy()[0]
    given = image if kind in (np.float32, "tensor") else (image * np.iinfo(kind).max).astype(kind)
    hole = HOLE.mask[0, 0].numpy()
    spoiled = given.copy()
    spoiled[hole] = float("nan") if kind in (np.float32, "tensor") else np.iinfo(kind).max
    plain, other = (torch.from_numpy(v)[None] if kind == "tensor" else v for v in (given, spoiled))
    options = {"num_inference_steps": 2, "output_type": "pt"}
    expected = unet_pipe().inpaint(plain, hole, generator=seeded(), **options).images
    found = unet_pipe().inpaint(other, hole, generator=seeded(), **options).images
    assert torch.equal(found, expected)
    if kind is np.float32:
        with pytest.raises(ValueError, match="`image` must be integers, or floating point in"):
            unet_pipe().inpaint(other, ~hole, **options)  # NaN where it is known


# ---- what is refused


class Halves(LinearOperator):
    """Sums of neighbours, whose pseudo-inverse is half of each for both."""

    def __init__(self, **wrong):
        vars(self).update(wrong)

    def __call__(self, x):
        return x[..., ::2] + x[..., 1::2]

    def pseudo_inverse(self, y):
        return y.repeat_interleave(2, 3) / 2

    def ridge(self, y, a, b):
        return y.repeat_interleave(2, 3) / (2 * a + b)


class Each(LinearOperator):
    """A mask of its own for each image."""

    def __init__(self, mask, repeated=lambda mask, k: mask.repeat_interleave(k, 0)):
        self.mask, self.repeated = mask, repeated

    def __call__(self, x):
        return torch.where(self.mask, 0, x)

    def repeat(self, samples):
        return Each(self.repeated(self.mask, samples), self.repeated)


def test_what_a_class_says_of_itself_is_tried():
    shape = (2, 1, SIZE, SIZE)
    check_operator(Halves().for_images(shape), shape)
    masks = random_mask(shape, 0.5, seeded())
    check_operator(Each(masks).for_images(shape), shape)
    wrong = {
        "pseudo_inverse": (Halves(pseudo_inverse=lambda y: y.repeat_interleave(2, 3)), "A A\\+ y = y"),
        "ridge": (Halves(ridge=lambda y, a, b: y.repeat_interleave(2, 3) / (a + b)), "A'\\(y - A u\\) = b u"),
        "measured": (Halves(measured=lambda y: 0 * y), "must leave A x as it is"),
        "count": (Halves(count=lambda shape: torch.tensor([1.0, 2.0, 3.0])), "must be a tensor \\(2,\\)"),
        "repeat": (Each(masks, lambda mask, k: mask.repeat(k, 1, 1, 1)), "must measure each image twice"),
    }
    for part, (operator, message) in wrong.items():
        with pytest.raises(ValueError, match=f"`operator.{part}.*{message}"):
            check_operator(operator.for_images(shape), shape)


@pytest.mark.parametrize(
    "operator, x, name",
    [
        (Bands([5]), images(1, 3, 4, 4), "bands"),
        (Grayscale(), images(1, 1, 4, 4), "weights"),
        (Mask(torch.ones(1, 4, dtype=torch.bool)), images(1, 1, 4, 4), "mask"),
        (MaskedFourier(torch.ones(1, 4, dtype=torch.bool)), images(1, 1, 4, 4), "sampled"),
        (Convolution(torch.ones(9, 9)), images(1, 1, 6, 8), "kernel"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_images_that_do_not_fit_are_refused_where_they_are_measured(operator, x, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        operator(x)


def test_physics_must_measure():
    with pytest.raises(ValueError, match="`physics` must be a `Physics` of deepinv"):
        from_deepinv(3, (1, 4, 4))


def test_kernels_of_a_blur_keep_the_brightness():
    image = images(1, SIZE, SIZE)
    with pytest.raises(ValueError, match="`kernel` must have the sum 1 .* but has 9:"):
        unet_pipe().deblur(image, torch.ones(3, 3))
    unet_pipe().deblur(image, torch.ones(3, 3) / 9, num_inference_steps=1)


def test_measurements_in_other_units_are_told_of():
    operator, image = Downsampling(2), images(1, 1, SIZE, SIZE)
    unet_pipe()(operator(image), operator, num_inference_steps=1)  # a warning would be an error
    with pytest.warns(UserWarning, match="times what white images, or images of noise, measure by Downsampling"):
        unet_pipe()(255 * operator(image), operator, num_inference_steps=1)


def test_tensors_without_values_are_refused():
    for y in (torch.zeros(1, 1, SIZE, SIZE, device="meta"), torch.zeros(1, 1, SIZE, SIZE).to_sparse()):
        with pytest.raises(ValueError, match="`measurement` must be a floating point tensor .* but is (meta|sparse)"):
            unet_pipe()(y, HOLE)


@pytest.mark.parametrize(
    "operator",
    [
        Bands([0]),
        Grayscale(),
        Downsampling(2),
        Bicubic(2),
        GaussianBlur(1.0),
        Convolution(torch.ones(3, 3)),
        Convolution(torch.ones(3, 3), boundary="circular"),
        Radon(torch.arange(0.0, 180.0, 30.0)),
        MaskedFourier(torch.ones(4, 4, dtype=torch.bool)),
        FourierMagnitude(),
        JPEG(50),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_image_without_a_batch_is_refused(operator):
    name = type(operator).__name__
    with pytest.raises(ValueError, match=rf"{name} takes images \(N, C, H, W\), but they have the shape \(3, 4, 4\)"):
        operator(images(3, 4, 4))
    with pytest.raises(ValueError, match=f"{name} takes images .* but they are ndarray"):
        operator(images(1, 3, 4, 4).numpy())
