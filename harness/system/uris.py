"""URIs of MLflow stores: validation, and display without credentials."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from harness.errors import HarnessError, suggest

DATABASES = ("postgresql", "mysql", "mssql")
_SCHEMES = ("http", "https", "file", "sqlite", *DATABASES)
_ALLOWED = (
    "use an MLflow server (http://HOST:5000), a database (sqlite:///FILE, postgresql+psycopg2://USER@HOST/NAME) "
    "or the folder of a file store (file:DIR)"
)
_VARIABLE = "MLFLOW_TRACKING_URI"
_USER_INFO = re.compile(r"(?<=://)[^/\n][^\n]*@")
_USER_INFO_WITHOUT_SCHEME = re.compile(r"[^\s:/='\"]+:[^\s/]\S*@")
_SECRET_PARAMETER = re.compile(r"(?i)([?&][\w-]*(?:password|passwd|pwd|token|secret|key)=)[^&\s]*")


def redact(text: str) -> str:
    """The text with `***` in place of user names and passwords before a host, and of secrets in a query.

    Everything up to the last @ of a line is removed, because a password may contain any character.
    """
    text = _USER_INFO.sub("***@", text)
    text = _USER_INFO_WITHOUT_SCHEME.sub("***@", text)
    return _SECRET_PARAMETER.sub(r"\1***", text)


def scheme_of(uri: str) -> str:
    """The scheme without a driver; `file` for a plain path."""
    scheme = uri.partition(":")[0] if "://" in uri or uri.startswith("file:") else "file"
    return scheme.partition("+")[0].lower()


def tracking_uri_problem(uri: str) -> str | None:
    """Why MLflow cannot use this URI, and what is allowed; None if it is valid."""
    scheme = scheme_of(uri)
    found = f"found {redact(uri)!r}; "
    if scheme not in _SCHEMES:
        return f"{found}unknown scheme {scheme!r}, {suggest(scheme, _SCHEMES)}; {_ALLOWED}"
    if scheme == "sqlite":
        file = Path(uri.partition(":///")[2])
        if ":///" not in uri or file.name == "" or file.is_dir():
            return f"{found}has no file name; {_ALLOWED}"
        return None if file.parent.is_dir() else f"{found}there is no folder {file.parent}; create it"
    if scheme == "file":
        return _file_store_problem(uri, found)
    try:
        parts = urlsplit(uri)
        is_whole = parts.port is None or parts.port > 0
    except ValueError:
        is_whole = False
    if not is_whole or re.search(r"\s", uri):
        return f"{found}not a valid URL; {_ALLOWED}"
    if scheme in {"http", "https"} and not parts.hostname:
        return f"{found}has no host; {_ALLOWED}"
    if scheme in DATABASES and parts.path in {"", "/"}:
        return f"{found}has no database name; {_ALLOWED}"
    return None


def _file_store_problem(uri: str, found: str) -> str | None:
    """A path without `file:` must look like a path; `localhost:5000` and misspelt URLs are rejected."""
    path = Path(urlsplit(uri).path) if uri.startswith("file:") else Path(uri)
    if path.is_file():
        return f"{found}is a file; {_ALLOWED}"
    is_path = uri.startswith(("file:", "/", "./", "../")) or path.is_dir()
    return None if is_path and uri not in {"file:", "file://"} and uri else f"{found}{_ALLOWED}"


def choose_tracking_uri(flag: str | None, study_uri: str | None) -> str | None:
    """The URI of the MLflow store: `--tracking-uri`, else the study's `tracking.uri`, else MLFLOW_TRACKING_URI.

    Returns:
        None if none is set, which selects the store in the run folder.

    Raises:
        HarnessError: MLflow cannot use the URI. (The study's URI is checked when the study is loaded.)
    """
    if flag is None and study_uri is not None:
        return study_uri
    uri, source = (flag, "--tracking-uri") if flag is not None else (os.environ.get(_VARIABLE) or None, _VARIABLE)
    problem = None if uri is None else tracking_uri_problem(uri)
    if problem is not None:
        raise HarnessError(f"{source}: {problem}")
    return uri
