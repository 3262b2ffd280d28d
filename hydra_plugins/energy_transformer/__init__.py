"""Hydra plugins of this project, and the resolver that its configurations use."""

from omegaconf import OmegaConf

from et.graphs.published import standardize_by_default

OmegaConf.register_new_resolver("standardize_by_default", standardize_by_default, replace=True)
