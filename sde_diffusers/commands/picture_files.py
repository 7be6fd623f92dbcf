"""Pictures as files: those that a command is given, and those that it writes."""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def pictures_of(paths: list[Path]) -> list[Path]:
    """The files that are given, and the pictures in folders that are given (and theirs), in order of their names.

    Raises:
        ValueError: if there is no such file or folder, a folder without pictures, or a file that is given twice.
    """
    from PIL import Image

    known, found = Image.registered_extensions(), []
    for path in paths:
        if not path.exists():
            raise ValueError(f"There is no file or folder {path}.")
        files = [path] if path.is_file() else sorted(f for f in files_below(path) if f.suffix.lower() in known)
        if not files:
            raise ValueError(f"{path} holds no pictures.")
        found += files
    if twice := next((path for path, times in Counter(found).items() if times > 1), None):
        raise ValueError(f"{twice} is given twice.")
    return found


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and its folders, also by links, but not in circles, and none of hidden folders."""
    above: dict[str, set] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        seen = above.get(os.path.dirname(place), set()) | {(status.st_dev, status.st_ino)}
        above[place] = seen
        inside = {name: os.stat(os.path.join(place, name)) for name in folders}
        folders[:] = [
            name
            for name, found in inside.items()
            if not name.startswith(".") and (found.st_dev, found.st_ino) not in seen
        ]
        yield from (Path(place, name) for name in names)


def opened_picture(path: Path, argument: str | None = None):
    """The picture in a file, whole. Raises a ValueError that names the file if it holds none, or several."""
    from PIL import Image

    from sde_diffusers.whole_pictures import deeper_than_pil, negative_in_pil, pictures_in

    if path.is_dir():
        raise ValueError(f"{argument or 'A picture'} must be a file, but {path} is a folder.")
    try:
        with Image.open(path) as image:
            deep, count = deeper_than_pil(image), pictures_in(image)
            image.load()
    except Exception as error:  # of any kind, since damaged files provoke any
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    if negative_in_pil(image):
        raise ValueError(f"{path} is a TIFF file in which 0 is white: give it in Python, as an array.")
    if deep:
        raise ValueError(f"{path} holds colours of 16 bits, of which PIL keeps 8: give them in Python, as an array.")
    if count > 1:
        raise ValueError(
            f"{path} holds {count} pictures: give each in a file of its own, and bands in Python, as an array."
        )
    return image


OF_NUMBERS = tuple(".npz .pt .pth .ckpt .bin .safetensors .h5 .zarr .parquet .csv .json .zip .tar".split())


def require_new(output: Path) -> None:
    """Raise a ValueError unless results can go to `output`: a new or an empty folder, not named like a file."""
    from PIL import Image

    if output.suffix.lower() in (*Image.registered_extensions(), *OF_NUMBERS):
        raise ValueError(f"{output} is to be a folder, for several pictures: name it without {output.suffix}.")
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists: name a new or an empty folder.")
    require_writable(output)


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[None]:
    """A block in which no other such block writes to `output`, which must be new still, or an empty folder.

    Raises:
        ValueError: it is not, or another command is at it.
    """
    mark = output.with_name(f".{output.name}.claimed")
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.open("x").close()
    except FileExistsError:
        raise ValueError(
            f"Another command is writing to {output}, or was killed meanwhile; in that case delete {mark}."
        ) from None
    try:
        require_new(output)
        yield
    finally:
        mark.unlink()


def require_writable(path: Path) -> None:
    """Raise a ValueError if no file or folder can be made at `path`, which may need folders above it."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{path} cannot be written: {there} is {'read-only' if there.is_dir() else 'a file'}.")


def require_picture_name(path: Path) -> None:
    """Raise a ValueError unless the name says in which format a picture is to be written, in grey or in colours."""
    from PIL import Image

    format = Image.registered_extensions().get(path.suffix.lower())
    try:
        for mode in ("L", "RGB"):
            Image.new(mode, (1, 1)).save(io.BytesIO(), format or "none")
    except (KeyError, OSError, ValueError):  # no such format, none that is written, or none for such pictures
        raise ValueError(f"{path} must end in what names a format of pictures, such as .png.") from None


def save_pictures(pictures: dict, folder: Path) -> list[Path]:
    """Write PIL images {name: image} without loss: PNG, or TIFF where PNG has no such depth."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, image in pictures.items():
        paths.append(folder / f"{name}{'.tiff' if image.mode in ('I', 'F') else '.png'}")
        save_picture(image, paths[-1])
    return paths


def save_picture(image, path: Path) -> None:
    """Write a PIL image in the format that its name says; see `write_whole`."""
    from PIL import Image

    content = io.BytesIO()
    image.save(content, Image.registered_extensions()[path.suffix.lower()])
    write_whole(path, content.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that has its name only once all of it is on the disk, in a folder that is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    incomplete = path.with_name(f".{path.name}.incomplete")
    try:
        with incomplete.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(incomplete, path)
    finally:
        incomplete.unlink(missing_ok=True)
