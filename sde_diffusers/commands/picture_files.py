"""Pictures as files: those that a command is given, and those that it writes."""

from pathlib import Path


def pictures_of(paths: list[Path]) -> list[Path]:
    """The files that are given, and the pictures in folders that are given (and theirs), in order of their names.

    Raises:
        ValueError: if there is no such file or folder, or a folder without pictures.
    """
    from PIL import Image

    known, found = Image.registered_extensions(), []
    for path in paths:
        if not path.exists():
            raise ValueError(f"There is no file or folder {path}.")
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix.lower() in known)
        if not files:
            raise ValueError(f"{path} holds no pictures.")
        found += files
    return found


def opened_picture(path: Path):
    """The picture in a file, whole. Raises a ValueError that names the file if it holds none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def require_new(output: Path) -> None:
    """Raise a ValueError unless `output` is where nothing lies, or an empty folder."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists: name a new or an empty folder.")


def save_pictures(pictures: dict, folder: Path) -> list[Path]:
    """Write PIL images {name: image} without loss: PNG, or TIFF where PNG has no such depth."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, image in pictures.items():
        paths.append(folder / f"{name}{'.tiff' if image.mode in ('I', 'F') else '.png'}")
        image.save(paths[-1])
    return paths
