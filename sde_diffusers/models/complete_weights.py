"""Loading that takes a network's weights whole or not at all.

diffusers initialises tensors that a file lacks at random and leaves out those that the network lacks, with a warning:
a network that answers nonsense, or a class-conditional one that ignores its classes.
"""


class CompleteWeightsMixin:
    """Before `ModelMixin` among the bases of a network."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a network; the arguments are those of `ModelMixin.from_pretrained`.

        On CPUs the weights come to lie where PyTorch would have allocated them: at other addresses, as in a mapped
        file, its kernels round differently, and the network would not answer bit for bit as before it was saved.

        Raises:
            ValueError: If tensors are missing, left over or of another shape than the configuration asks for.
            OSError: If a file is missing, broken or no safetensors file.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except ValueError as error:  # of a tensor's shape, which does not name the folder
            raise ValueError(f"{pretrained_model_name_or_path}: {error}") from error
        kinds = {"missing": info["missing_keys"], "left over": info["unexpected_keys"]}
        misfits = [f"{', '.join(sorted(keys))} {kind}" for kind, keys in kinds.items() if keys]
        if misfits:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} are not those of its configuration, a "
                f"{cls.__name__}: {'; '.join(misfits)}."
            )
        for parameter in model.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
                parameter.data = parameter.data.clone()
        return (model, info) if wants_info else model
