"""What PIL would leave out of a picture in a file: further pictures, and half of the bits of deep colours."""

from PIL import Image


def pictures_in(image: Image.Image) -> int:
    """How many pictures the file of one holds; 1 for a camera's MPO, whose others belong to the photograph."""
    if image.format == "MPO":
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except ValueError:  # the file is closed, and this picture all that was read
        return 1


def deeper_than_pil(image: Image.Image) -> bool:
    """Whether a picture's file has 16 bits a colour, of which PIL keeps 8; known only until it is loaded."""
    if image.format == "PPM" and image.mode == "RGB":  # whose decoder is told which value is white
        return any(isinstance(tile[3], tuple) and tile[3][-1] > 255 for tile in getattr(image, "tile", ()))
    return not image.mode.startswith("I") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def negative_in_pil(image: Image.Image) -> bool:
    """Whether a picture is from a TIFF file of more than 8 bits in which 0 is white, which PIL does not turn."""
    return image.mode.startswith("I") and getattr(image, "tag_v2", {}).get(262) == 0


def require_whole(name: str, image: Image.Image) -> None:
    """Raise a ValueError if a file of several pictures is given, or of deep colours: all would not be read."""
    if negative_in_pil(image):
        raise ValueError(f"`{name}` is from a TIFF file in which 0 is white, which PIL reads as black: give an array.")
    if deeper_than_pil(image):
        raise ValueError(f"`{name}` has colours of 16 bits, of which PIL keeps 8: give them as an array.")
    if (count := pictures_in(image)) > 1:
        raise ValueError(f"`{name}` holds {count} pictures in one file: choose one by `seek`, and give its `copy()`.")
