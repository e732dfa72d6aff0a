"""The embedded benchmark `scenes` under its name in YAML; `harness.data.scenes` generates it."""

from harness.data.scenes import Config, load

__all__ = ["Config", "load"]
