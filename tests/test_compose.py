"""The services of deploy/compose.yaml are pinned, private by default, and of the versions that the package requires."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from harness.errors import HarnessError
from harness.queue.storage import open_storage

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE = YAML(typ="safe").load(TEXT)
SERVICES = COMPOSE["services"]
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:-|:\?)?([^}]*)\}")


def with_defaults(text: str) -> str:
    """The text as compose reads it where no variable is set."""
    return VARIABLE.sub(lambda found: found[3] if found[2] == ":-" else "", text)


def requirements() -> dict[str, Requirement]:
    """The requirements of the package and of its extras, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return {canonicalize_name(found.name): found for found in map(Requirement, texts)}


def packages() -> list[tuple[str, str, str]]:
    """Service, name and version of each Python package that an image installs."""
    built = {name: service["build"]["args"]["PACKAGES"] for name, service in SERVICES.items() if "build" in service}
    return [(name, *pin.split("==")) for name, pins in built.items() for pin in pins.split()]


def test_the_services_are_a_database_an_mlflow_server_and_a_dashboard():
    assert set(SERVICES) == {"database", "mlflow", "dashboard"}
    assert SERVICES["mlflow"]["command"].startswith("mlflow server ")
    assert "exec optuna-dashboard " in SERVICES["dashboard"]["command"]


def test_every_image_has_a_tag_with_a_complete_version():
    images = [service["image"] for service in SERVICES.values()]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 4
    assert [image for image in images if not re.fullmatch(r"[\w-]+:\d+\.\d+(\.\d+)?(-[\w-]+)?", image)] == []


@pytest.mark.parametrize(("service", "name", "version"), packages())
def test_an_image_installs_a_version_that_the_package_allows(service, name, version):
    assert requirements()[name].specifier.contains(version), service


def test_tags_of_images_are_the_versions_of_the_programs_in_them():
    versions = {(service, name): version for service, name, version in packages()}
    assert SERVICES["mlflow"]["image"].endswith(f":{versions['mlflow', 'mlflow']}")
    assert SERVICES["dashboard"]["image"].endswith(f":{versions['dashboard', 'optuna-dashboard']}")
    assert versions["mlflow", "psycopg2-binary"] == versions["dashboard", "psycopg2-binary"]


def test_ports_are_published_on_the_loopback_interface_unless_an_address_is_set():
    ports = {name: [with_defaults(port) for port in service["ports"]] for name, service in SERVICES.items()}
    assert ports == {
        "database": ["127.0.0.1:5432:5432"],
        "mlflow": ["127.0.0.1:5000:5000"],
        "dashboard": ["127.0.0.1:8080:8080"],
    }
    assert SERVICES["dashboard"]["ports"] == ports["dashboard"]


def test_the_other_services_wait_until_the_database_is_healthy():
    assert all(
        {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"]) for service in SERVICES.values()
    )
    waiting = {name: service.get("depends_on") for name, service in SERVICES.items()}
    healthy = {"database": {"condition": "service_healthy"}}
    assert waiting == {"database": None, "mlflow": healthy, "dashboard": healthy}


def test_databases_and_artifacts_are_in_named_volumes():
    mounted = {mount for service in SERVICES.values() for mount in service.get("volumes", []) if mount[0] != "."}
    assert mounted == {"database:/var/lib/postgresql/data", "artifacts:/data"}
    assert set(COMPOSE["volumes"]) == {"database", "artifacts"}
    assert "--artifacts-destination /data" in SERVICES["mlflow"]["command"]


def test_passwords_have_no_defaults_and_are_in_no_command():
    variables = VARIABLE.findall(TEXT)
    passwords = {name: kind for name, kind, _ in variables if name.endswith("PASSWORD")}
    assert passwords == dict.fromkeys(("POSTGRES_PASSWORD", "OPTUNA_PASSWORD", "MLFLOW_PASSWORD"), ":?")
    values = [(key, text) for service in SERVICES.values() for key, text in service["environment"].items()]
    assert [key for key, text in values if key.endswith("PASSWORD") and not VARIABLE.fullmatch(text)] == []
    assert re.findall(r"://\w+:\w+@", TEXT) == []
    assert not any("PASSWORD" in str(service.get("command")) for service in SERVICES.values())


def test_the_example_names_every_variable_and_contains_no_password():
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(example) == {name for name, _, _ in VARIABLE.findall(TEXT)}
    assert [name for name, value in example.items() if name.endswith("PASSWORD") and value] == []


def test_git_ignores_the_passwords_and_keeps_the_example():
    command = ["git", "check-ignore", "--no-index", "deploy/.env", "deploy/.env.example"]
    if not (ROOT / ".git").exists():
        pytest.skip("this machine has the files without their repository")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split() == [
        "deploy/.env"
    ]


def test_each_database_is_created_with_the_password_of_its_service():
    sql = (DEPLOY / "create_databases.sql").read_text()
    for name, service in (("optuna", "dashboard"), ("mlflow", "mlflow")):
        variable = VARIABLE.fullmatch(SERVICES[service]["environment"]["PGPASSWORD"])[1]
        assert f"\\getenv {name}_password {variable}" in sql
        assert f"CREATE ROLE {name} LOGIN PASSWORD :'{name}_password'" in sql
        assert VARIABLE.fullmatch(SERVICES["database"]["environment"][variable])[1] == variable
        assert f"postgresql+psycopg2://{name}@database/{name}" in SERVICES[service]["environment"].values()


def test_a_storage_without_its_driver_is_refused_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(HarnessError) as caught:
        open_storage("postgresql+psycopg2://optuna:secret@db/optuna")
    assert str(caught.value) == (
        "--storage 'postgresql+psycopg2://***@db/optuna' requires the driver psycopg2, which is not installed; for "
        "PostgreSQL, run `pip install -e '.[postgresql]'` and give a URL like postgresql+psycopg2://user@host/optuna"
    )
    assert "postgresql" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
