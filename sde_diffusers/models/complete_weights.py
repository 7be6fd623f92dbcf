"""Saving and loading that takes a network's weights whole or not at all, and its settings.

diffusers initialises tensors that a file lacks at random and leaves out those that the network lacks, with a warning:
a network that answers nonsense, or a class-conditional one that ignores its classes. And it saves into a folder beside
shards or an index of earlier weights, which are then loaded instead. Keys that a network does not take it ignores.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from sde_diffusers.known_keys import require_known_keys
from sde_diffusers.saved_folders.folder_options import require_dtypes, require_save_options
from sde_diffusers.saved_folders.stale_weights import stale_weights
from sde_diffusers.saved_folders.whole_folder import whole_save


def load_complete(load: Callable, folder: str, network: str, spare: Iterable[str] = (), **options) -> tuple:
    """A network and what `output_loading_info` tells of it.

    Args:
        load: `from_pretrained` of diffusers, of the folder or id and the options.
        network: the name of its class, for the message.
        spare: names of tensors that files may hold beside the network's.

    Raises:
        ValueError: If tensors are missing, left over or of another shape than the configuration asks for.
    """
    try:
        model, info = load(folder, output_loading_info=True, **options)
    except ValueError as error:  # of a tensor's shape, which does not name the folder
        raise ValueError(f"{folder}: {error}") from error
    kinds = {"missing": info["missing_keys"], "left over": set(info["unexpected_keys"]) - set(spare)}
    misfits = [f"{', '.join(sorted(keys))} {kind}" for kind, keys in kinds.items() if keys]
    if misfits:
        raise ValueError(
            f"The weights in {folder} are not those of its configuration, a {network}: {'; '.join(misfits)}."
        )
    return model, info


class CompleteWeightsMixin:
    """Before `ModelMixin` among the bases of a network."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs,
    ):
        """Save a network; the arguments are those of `ModelMixin.save_pretrained`.

        The folder is as it was until all is written; earlier weights are then gone, and other files stay.

        Raises:
            ValueError: If the folder is no path or a file, or a variant or size of shards is none.
            OSError: If something cannot be written; the folder is then as it was.
        """
        require_save_options(variant, max_shard_size)
        if push_to_hub:
            kwargs.setdefault("repo_id", Path(save_directory).resolve().name)
        options = (is_main_process, save_function, safe_serialization, variant, max_shard_size, push_to_hub)
        with whole_save(save_directory, stale_weights) as folder:
            super().save_pretrained(str(folder), *options, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: dict | None = None, return_unused_kwargs: bool = False, **kwargs):
        """A network with new weights, as a configuration says; keys by name take the place of its own.

        Raises:
            ValueError: On keys that it does not take, unless the unused ones are to be returned.
        """
        of_a_file = kwargs.pop("_of_a_file", False)  # may be of a newer version: diffusers warns of what is ignored
        if not return_unused_kwargs:
            given = {} if of_a_file or not isinstance(config, dict) else config
            require_known_keys([*kwargs, *given], [cls], cls.__name__)
        return super().from_config(config, return_unused_kwargs, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """Load a network; the arguments are those of `ModelMixin.from_pretrained`.

        On CPUs the weights come to lie where PyTorch would have allocated them: at other addresses, as in a mapped
        file, its kernels round differently, and the network would not answer bit for bit as before it was saved.

        Raises:
            ValueError: If tensors are missing, left over or of another shape than the configuration asks for, on
                arguments that neither diffusers nor the network takes, or on a dtype that is none of torch.
            OSError: If a file is missing, broken or no safetensors file.
        """
        require_dtypes(kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        load = super().from_pretrained  # type: ignore[misc]
        folder = os.path.expanduser(pretrained_model_name_or_path)
        model, info = load_complete(load, folder, cls.__name__, _of_a_file=True, **kwargs)
        for parameter in model.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
                parameter.data = parameter.data.clone()
        return (model, info) if wants_info else model
