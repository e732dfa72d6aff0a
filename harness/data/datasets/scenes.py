"""The embedded benchmark `scenes` under its name in YAML; `harness.data.scenes` draws it."""

from harness.data.scenes import Config, load

__all__ = ["Config", "load"]
