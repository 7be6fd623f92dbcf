"""The one reader of pictures, arrays and masks, and what values mean."""

import numpy as np
import pytest
import torch
from gaussian_images import GaussianImages
from PIL import Image

from sde_diffusers import NCSNppUNet2DModel, ScoreSdePipeline, ScoreSdeProbabilityFlowScheduler
from sde_diffusers.images import PixelFormat, read_images, read_mask, to_pil

TINY = {"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "fir": False}


def pipeline(**options):
    torch.manual_seed(0)
    network = NCSNppUNet2DModel(**{"in_channels": 1, "attention_resolutions": (), **TINY, **options})
    pipe = ScoreSdePipeline(network.eval(), ScoreSdeProbabilityFlowScheduler(sde="ve"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "dtype, value_range, levels", [("uint8", None, 256), ("uint16", (0, 4095), 4096), ("int16", (-1024, 3071), 4096)]
)
def test_values_and_back(dtype, value_range, levels):
    pixels = PixelFormat.of(dtype, value_range)
    values = torch.arange(pixels.low, pixels.high + 1).to(pixels.torch_dtype)
    unit = pixels.to_unit(values)
    assert pixels.levels == levels and unit[0] == 0 and unit[-1] == 1 and torch.equal(pixels.from_unit(unit), values)
    assert torch.equal(pixels.dequantized(values, torch.zeros(levels)), torch.arange(levels) / levels)
    assert pixels.from_unit(torch.tensor([-1.0, 2.0])).tolist() == [pixels.low, pixels.high]


@pytest.mark.parametrize(
    "dtype, value_range, message",
    [
        ("int32", None, "`value_dtype` must be one of uint8, uint16, int16, float32"),
        ("float32", None, "must be given for float32"),
        ("float32", (1, 1), "low < high"),
        ("uint8", (0, 256), "integers in \\[0, 255\\]"),
        ("uint16", (0, 0.5), "integers in"),
    ],
)
def test_bad_formats(dtype, value_range, message):
    with pytest.raises(ValueError, match=message):
        PixelFormat.of(dtype, value_range)
    with pytest.raises(ValueError, match=message):
        NCSNppUNet2DModel(**TINY, value_dtype=dtype, value_range=value_range)


def test_pictures_of_all_depths_mean_the_same():
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    expected = torch.arange(256).view(1, 1, 16, 16) / 255
    for image in (
        Image.fromarray(ramp),
        Image.fromarray((ramp // 257).astype(np.uint8)),
        Image.fromarray((ramp / 65535).astype(np.float32)),
        Image.fromarray(ramp.astype(np.int32)),
        ramp,
        (ramp // 257).astype(np.uint8),
        ramp.astype(np.float64) / 65535,
        torch.from_numpy(ramp)[None],
    ):
        assert torch.allclose(read_images("image", image, 1), expected, atol=1e-6)


def test_transparency_is_on_white_and_pictures_are_upright():
    logo = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    logo.putpixel((0, 0), (0, 0, 0, 255))
    read = read_images("image", logo, 3)
    assert read[0, :, 0, 0].tolist() == [0, 0, 0] and (read.flatten(2)[..., 1:] == 1).all()
    photo = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    photo.getexif()[0x0112] = 6
    assert np.array_equal(read_images("image", photo, 1)[0, 0] * 255, np.rot90(np.asarray(photo), -1))


def test_no_picture_loses_colours_or_frames_without_a_word(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    same = Image.fromarray(np.stack([grey] * 3, 2))
    expected = read_images("image", grey, 1)
    for image in (same, same.convert("RGBA"), same.quantize(), Image.fromarray(grey).convert("CMYK")):
        assert torch.equal(read_images("image", image, 1), read_images("image", image.convert("L"), 1))
    assert torch.equal(read_images("image", same, 1), expected)
    same.putpixel((0, 0), (255, 0, 0))
    for image in (same, same.convert("P"), same.convert("RGBA")):
        with pytest.warns(UserWarning, match="`image` has colours"):
            assert torch.equal(
                read_images("image", image, 1), read_images("image", image.convert("RGB").convert("L"), 1)
            )
    frames = [Image.fromarray(grey), Image.fromarray(grey[::-1].copy())]
    photo, depth = (frame.copy() for frame in frames)
    photo.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[depth])  # as cameras write it
    assert read_images("image", Image.open(tmp_path / "photo.jpg"), 1).sub(expected).abs().max() < 0.02
    for name in ("moving.gif", "pages.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with Image.open(tmp_path / name) as moving:
            with pytest.raises(ValueError, match="`image` holds 2 pictures"):
                read_images("image", moving)
            with pytest.raises(ValueError, match="`mask` holds 2 pictures"):
                read_mask("mask", moving, (8, 8))
            moving.seek(1)
            assert torch.equal(read_images("image", moving.copy(), 1), read_images("image", frames[1], 1))
        frames[0].save(tmp_path / name)
        with Image.open(tmp_path / name) as still:
            still.load()
        assert torch.equal(read_images("image", still, 1), expected)


@pytest.mark.parametrize("white", [255, 65535, 1.0])
def test_soft_masks_count_from_one_half_at_every_depth(white):
    dtype = {255: np.uint8, 65535: np.uint16, 1.0: np.float32}[white]
    soft = (np.array([[1, 0.6], [0.4, 0.005]]) * white).astype(dtype)
    assert read_mask("mask", Image.fromarray(soft), (2, 2))[0, 0].tolist() == [[True, True], [False, False]]
    binary = (soft > white / 2) * dtype(white)
    assert read_mask("mask", binary.astype(dtype), (2, 2))[0, 0].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    "dtype, value_range, mode", [("uint16", None, "I;16"), ("int16", (-10, 3000), "I"), ("float32", (-2.0, 2.0), "F")]
)
def test_pipelines_speak_the_units_of_their_data(dtype, value_range, mode, tmp_path):
    pipeline(value_dtype=dtype, value_range=value_range).save_pretrained(tmp_path)
    pipe = ScoreSdePipeline.from_pretrained(tmp_path)
    pixels = PixelFormat.of(dtype, value_range)
    assert pipe.pixel_format == pixels

    def draw(**options):
        return pipe(3, 2, generator=torch.Generator().manual_seed(0), **options).images

    unit = draw(output_type="pt")
    values = draw(output_type="np", data_units=True)
    assert values.dtype == dtype and values.shape == (3, 8, 8, 1)
    assert np.array_equal(values, pixels.from_unit(unit).permute(0, 2, 3, 1).numpy().astype(dtype))
    assert torch.equal(draw(output_type="pt", data_units=True), pixels.from_unit(unit))
    pictures = draw()
    assert pictures[0].mode == mode and np.array_equal(np.asarray(pictures[1]), values[1, ..., 0])
    if dtype != "float32":
        assert torch.allclose(read_images("image", values, 1, pixels), unit, atol=1 / pixels.levels)


@pytest.mark.parametrize(
    "given, message",
    [
        (np.zeros((1, 28, 27), np.uint8), r"must hold images with 1 channels, but has shape \(1, 28, 27\)"),
        (
            [np.zeros((8, 8), np.uint8)],
            "must be a list of PIL images, or one array or tensor, but the list holds ndarray",
        ),
        ([], ".*but the list holds nothing"),
    ],
)
def test_what_is_no_image_is_told_as_it_was_given(given, message):
    with pytest.raises(ValueError, match=f"`image` {message}"):
        read_images("image", given, 1)


def test_a_mask_of_another_size_is_told_as_it_was_given():
    with pytest.raises(ValueError, match=r"`mask` must have the image's size \(8, 8\), but has shape \(1, 8, 8\)"):
        read_mask("mask", np.ones((1, 8, 8), bool), (8, 8))


def test_numbers_that_are_not_real_are_refused():
    for value in (np.ones((8, 8), complex), torch.ones(1, 8, 8, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="`images` must hold real numbers, but is torch.complex"):
            read_images("images", value)


def test_subclasses_of_arrays_are_read_as_what_they_hold():
    """Whatever their axes do; what a masked array hides is no value."""
    values = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert torch.equal(read_images("image", np.asmatrix(values), 1), read_images("image", values, 1))
    assert torch.equal(read_images("image", np.ma.array(values), 1), read_images("image", values, 1))
    assert torch.equal(read_mask("mask", np.asmatrix(values > 7), (4, 4)), read_mask("mask", values > 7, (4, 4)))
    hidden = np.ma.array(values, mask=values > 7)
    for read in (lambda: read_images("image", hidden, 1), lambda: read_mask("image", hidden > 3, (4, 4))):
        with pytest.raises(ValueError, match="`image` must hold a value everywhere, but is a masked array"):
            read()


def test_masks_that_are_none_are_refused_by_name():
    for value in (np.ones(8, bool), np.ones((0, 8, 8, 1), bool), np.ones((8, 8), complex), np.array([[None]])):
        with pytest.raises(ValueError, match="`mask` must be .* an array or tensor of 2 to 4 axes, but is"):
            read_mask("mask", value, (8, 8))
    painted = np.zeros((8, 8), ">u2")
    painted[2, 3] = 65535
    assert read_mask("mask", painted, (8, 8)).nonzero().tolist() == [[0, 0, 2, 3]]


def test_arrays_that_are_not_writable_are_read_without_a_warning(recwarn):
    array = np.asarray(Image.new("L", (8, 8), 51))
    assert not array.flags.writeable
    assert torch.equal(read_images("image", array), torch.full((1, 1, 8, 8), 0.2)) and not recwarn.list


def test_pictures_of_signed_numbers_are_read_back_whether_some_are_below_0_or_none():
    pixels = PixelFormat.of("int16", (-1024, 3071))
    for low in (-1024, 0, 300):  # a uint16 picture's white would be 65535
        unit = pixels.to_unit(torch.arange(low, low + 64).view(1, 1, 8, 8))
        assert torch.allclose(read_images("image", to_pil(unit, pixels), 1, pixels), unit)


def test_sixteen_bits_survive_on_their_way_to_a_file(tmp_path):
    unit = torch.linspace(0, 1, 65536).view(1, 1, 256, 256)
    to_pil(unit, PixelFormat.of("uint16"))[0].save(tmp_path / "ramp.png")
    values = np.asarray(Image.open(tmp_path / "ramp.png"))
    assert np.array_equal(values.ravel(), np.arange(65536))


def test_pil_refuses_what_it_cannot_hold_before_anything_is_drawn():
    pipe = pipeline(in_channels=5)
    with pytest.raises(ValueError, match="'pil' cannot hold uint8 images of 5 channels"):
        pipe(1, 2)
    assert pipe(1, 2, output_type="np").images.shape == (1, 8, 8, 5)


def test_likelihoods_take_the_levels_of_the_data():
    ramp = torch.arange(64).view(1, 1, 8, 8) * 1000
    options = {"rtol": 1e-3, "atol": 1e-3}
    deep = pipeline(value_dtype="uint16")
    plain = pipeline()

    def bits(pipe, images, **more):
        return pipe.bits_per_dim(images, torch.Generator().manual_seed(0), **options, **more).bits_per_dim

    expected = bits(plain, ramp.int(), levels=65536)
    assert torch.equal(bits(deep, ramp.int()), expected)
    assert torch.equal(bits(deep, torch.from_numpy(ramp.numpy().astype(np.uint16))), expected)
    floating = pipeline(value_dtype="float32", value_range=(-3.0, 5.0))
    unit = ramp.double() / 65535
    density = bits(plain, unit, levels=256, dequantize=False)  # in units of grey levels, of which the range has 256
    assert torch.allclose(bits(floating, unit), density + np.log2(8 / 256), atol=1e-6)
    with pytest.raises(ValueError, match="give `levels`"):
        bits(floating, unit, dequantize=True)


def test_classes_by_name(tmp_path):
    names = ["bag", "boot", "coat"]
    pipeline(num_class_embeds=3, class_names=names).save_pretrained(tmp_path)
    pipe = ScoreSdePipeline.from_pretrained(tmp_path)
    assert pipe.class_names == names

    def draw(labels):
        return pipe(2, 2, labels, generator=torch.Generator().manual_seed(0), output_type="pt").images

    assert torch.equal(draw("boot"), draw(1)) and torch.equal(draw(["bag", 2]), draw([0, 2]))
    assert torch.equal(draw(np.array(["coat", "bag"])), draw([2, 0]))
    with pytest.raises(ValueError, match="'baag', which is no class: did you mean 'bag'\\?"):
        draw("baag")
    with pytest.raises(ValueError, match="numbers only, no names"):
        pipeline(num_class_embeds=3)(1, 2, "bag")
    for bad in (["a", "a"], ["a", "b", "c", "d"], "abc"):
        with pytest.raises(ValueError, match="`class_names` must be"):
            NCSNppUNet2DModel(**TINY, num_class_embeds=3, class_names=bad)


def test_likelihood_of_sixteen_bits_against_a_closed_form():
    network = GaussianImages(sample_size=4, in_channels=1, mean=0.5, std=0.1)
    scheduler = ScoreSdeProbabilityFlowScheduler(sde="ve", sigma_max=5000.0)  # where the prior is all that is left
    pipe = ScoreSdePipeline(network.answers(scheduler), scheduler)
    pipe.set_progress_bar_config(disable=True)
    values = (network.draw(3, torch.Generator().manual_seed(0)).clamp(0, 1 - 1e-9) * 65536).floor().int()
    found = pipe.bits_per_dim(values, torch.Generator().manual_seed(1), probes="exact", levels=65536).bits_per_dim
    sigma = scheduler.sde.sigma(torch.tensor(1e-5, dtype=torch.float64))
    covariance = network.covariance + sigma**2 * torch.eye(16, dtype=torch.float64)
    density = torch.distributions.MultivariateNormal(network.mean, covariance)
    middles = (values.double().flatten(1) + 0.5) / 65536
    expected = -density.log_prob(middles) / (16 * np.log(2)) + 16
    assert torch.allclose(found, expected, atol=1e-3) and (found > 8).all()


def test_a_signed_picture_means_the_same_whatever_it_holds():
    """PIL's mode has signed numbers only, and an int16 network of colour images reads it as one of grey ones does."""
    values = np.full((4, 4), 1000, np.int32)
    pixels = PixelFormat.of("int16", (-1000, 3000))
    for channels in (1, 3):
        for lowest in (1000, -1):
            values[0, 0] = lowest
            read = read_images("image", Image.fromarray(values), channels, pixels)
            assert read.shape == (1, channels, 4, 4) and (read[..., 1:] == 0.5).all()


@pytest.mark.parametrize("value_range", [(0, 1e39), (1, 1 + 1e-9)])
def test_a_range_that_float32_does_not_have(value_range):
    with pytest.raises(ValueError, match="`value_range` must be finite numbers"):
        PixelFormat.of("float32", value_range)
