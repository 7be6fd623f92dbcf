"""The Hugging Face Hub: what a pipeline saves, pushes and pulls.

pipeline_mixin  the methods of pipelines
push, pull      a folder to a repository, and back
space           the web demo as a Space
connection      rights and failures
"""

from sde_diffusers.hub.pipeline_mixin import HubPipelineMixin

__all__ = ["HubPipelineMixin"]
