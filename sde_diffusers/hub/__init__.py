"""The Hugging Face Hub: what a pipeline saves, pushes and pulls.

pipeline_mixin  the methods of pipelines
push, pull      a folder to a repository, and back
space           the web demo as a Space
connection      rights and failures
"""

from sde_diffusers.hub.pipeline_mixin import HubPipelineMixin
from sde_diffusers.hub.pull import pull_model
from sde_diffusers.hub.push import push_model
from sde_diffusers.hub.space import push_space

__all__ = ["HubPipelineMixin", "pull_model", "push_model", "push_space"]
