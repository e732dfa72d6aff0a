"""What a run folder has already sent to MLflow, so that nothing is asked of a store that lacks nothing."""

import json
import uuid
from pathlib import Path

from harness.system.files import replace_file


class SentRuns:
    """A file that names the folder to MLflow, and for each store what it holds of the folder.

    It may be deleted: everything is then sent again, to runs of its own.

    Args:
        store: names one store; holds no credentials.
    """

    def __init__(self, path: Path, store: str) -> None:
        self.path = path
        self.store = store
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.folder_id, self._stores = str(content["folder"]), dict(content["stores"])
        except (OSError, ValueError, KeyError, TypeError):
            self.folder_id, self._stores = uuid.uuid4().hex, {}
        self._sent: dict[str, str] = self._stores.setdefault(store, {})

    def has(self, key: str, version: str) -> bool:
        """Whether the store holds this version of a run."""
        return self._sent.get(key) == version

    def add(self, key: str, version: str) -> None:
        """The store holds it now."""
        self._sent[key] = version
        self.save()

    def forget(self) -> None:
        """The store holds nothing."""
        self._sent.clear()

    def save(self) -> None:
        """Writes the file."""
        text = json.dumps({"folder": self.folder_id, "stores": self._stores}, indent=1)
        replace_file(self.path, lambda partial: partial.write_text(text, encoding="utf-8"))
