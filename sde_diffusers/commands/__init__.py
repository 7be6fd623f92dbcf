"""The sub-commands of `sde-diffusers`, one file each.

A function describes the arguments, in a moment, since `--help` and completion are this alone; another one runs the
command, and imports what it needs for that, such as torch.
"""
