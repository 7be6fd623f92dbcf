"""`sde-diffusers show`: what a model is."""

import json

from sde_diffusers.commands.arguments import add_command, add_model_arguments, loaded_pipeline

SHOW_EXAMPLES = """
  sde-diffusers show pretrained/fashion-mnist-ve
  sde-diffusers show you/garments --json
"""


def add_show_parser(commands) -> None:
    parser = add_command(
        commands,
        "show",
        "say what a model is: images, classes, network, SDE, sampler",
        SHOW_EXAMPLES,
    )
    add_model_arguments(parser)
    parser.set_defaults(run=run_show)


def run_show(options) -> int:
    from sde_diffusers.guidance import classes_of, image_shape
    from sde_diffusers.pipelines.pipeline_score_sde import ScoreSdePipeline
    from sde_diffusers.schedulers.fitted_steps import fits_in_short

    pipe = loaded_pipeline(ScoreSdePipeline, options)
    scheduler, pixels = pipe.scheduler, pipe.pixel_format
    given = {key: value for key, value in scheduler.config.items() if value is not None and not key.startswith("_")}
    if "fits" in given:
        given["fits"] = fits_in_short(given["fits"])
    facts = {
        "images": list(image_shape(pipe.unet)),
        "values": {"dtype": pixels.dtype, "low": pixels.low, "high": pixels.high},
        "num_classes": classes_of(pipe.unet) or 0,
        "class_names": pipe.class_names,
        "networks": {
            name: {"class": type(network).__name__, "parameters": network.num_parameters()}
            for name, network in pipe.components.items()
            if hasattr(network, "num_parameters")
        },
        "sde": repr(scheduler.training_sde),
        "prediction_type": scheduler.parameterization.prediction_type,
        "sampler": type(scheduler).__name__,
        "default_steps": scheduler.default_num_inference_steps,
        "sampler_config": given,
    }
    if options.json:
        print(json.dumps(facts))
        return 0
    channels, height, width = facts["images"]
    print(f"Images     {height} x {width}, {channels} channel{'s' if channels > 1 else ''}, {pixels.dtype} ", end="")
    print(f"from {pixels.low:g} to {pixels.high:g}")
    print(f"Classes    {', '.join(pipe.class_names or []) or facts['num_classes'] or 'none'}")
    for name, network in facts["networks"].items():
        print(f"{name:<10} {network['class']}, {network['parameters']:,} parameters")
    print(f"SDE        {facts['sde']}; the network answers with {facts['prediction_type']!r}")
    print(f"Sampler    {facts['sampler']}, {facts['default_steps']} steps unless told otherwise")
    print(f"           {', '.join(f'{key}={value!r}' for key, value in given.items())}")
    return 0
