"""Records which runs of a run folder were sent to MLflow, so that a finished study needs no connection."""

import json
import uuid
from pathlib import Path

from harness.system.files import replace_file


class SentRuns:
    """A file with the id of a run folder in MLflow, and the version of each run in each store.

    If the file is deleted, everything is sent again as separate runs.

    Args:
        store: name of one store, without credentials.
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
        """Records that the store has this version of a run."""
        self._sent[key] = version
        self.save()

    def forget(self) -> None:
        """Records that the store has no runs."""
        self._sent.clear()

    def save(self) -> None:
        """Writes the file."""
        text = json.dumps({"folder": self.folder_id, "stores": self._stores}, indent=1)
        replace_file(self.path, lambda partial: partial.write_text(text, encoding="utf-8"))
