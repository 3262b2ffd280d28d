"""Lets Hydra find what :mod:`et.runs.experiments` composes as if it had files.

These are the experiments without a file, in conf/experiment, and the names of runs that are no experiment.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from et.runs.experiments import composed, free_name, is_composed, names

GROUP, NAMES = "experiment", "free_name"


class ExperimentSource(ConfigSource):
    """Configurations ``experiment/NAME`` that conf/variants.yaml composes, and ``free_name/TASK-DATA-MODEL``."""

    @staticmethod
    def scheme() -> str:
        return "composed"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("", GROUP, NAMES)

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        return group == NAMES or (group == GROUP and is_composed(name))

    def load_config(self, config_path: str) -> ConfigResult:
        if not self.is_config(config_path):
            raise ConfigLoadError(f"no composed experiment: {config_path}")
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=OmegaConf.create(free_name(name) if group == NAMES else composed(name)),
            header={"package": "_global_"},
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path.strip("/") == GROUP and results_filter != ObjectType.GROUP:
            return [name for name in names() if is_composed(name)]
        return [GROUP] if not config_path.strip("/") and results_filter != ObjectType.CONFIG else []


class ExperimentSearchPath(SearchPathPlugin):
    """Appends :class:`ExperimentSource` to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="energy-transformer", path=f"{ExperimentSource.scheme()}://")
