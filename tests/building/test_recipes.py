"""The recipes of the guide, started for real: the very files and commands that the page shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.recipes import NETWORK, command, environment, files, make_ledger, open_ledger, running

JOBS = 12
CALLERS = 4
LIMITS = {"download_time_limit": 1, "execution_time_limit": 1, "upload_time_limit": 1}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the ledger of the recipes and their files, Django's apart."""
    make_ledger(tmp_path)
    for path, text in files().items():
        if "/" not in path:
            (tmp_path / path).write_text(text)
    return tmp_path


def statuses(directory: Path) -> Counter[str]:
    """How many reservations the ledger has, by status."""
    with open_ledger(directory) as ledger:
        return Counter(each.status for each in ledger.history().items)


def requests() -> list[dict[str, object]]:
    return [{"uuid": str(uuid4()), "executor_class": NETWORK.executor_class, **LIMITS} for _ in range(JOBS)]


def socket_client(directory: Path) -> httpx.Client:
    # Each request opens a connection of its own, so that another worker may accept it.
    transport = httpx.HTTPTransport(uds=str(directory / "socket"), retries=0, limits=httpx.Limits(max_connections=1))
    return httpx.Client(transport=transport, base_url="http://recipe", timeout=30)


@pytest.mark.slow
def test_fastapi_under_two_uvicorn_workers(directory: Path) -> None:
    """Both workers route on one ledger; the response models and the error for a lack of miners are the recipe's."""

    def route_and_spend(job: dict[str, object]) -> str:
        with socket_client(directory) as client:
            routed = client.post("/jobs", json=job)
            assert routed.status_code == 200, routed.text
            spent = client.post(f"/jobs/{job['uuid']}/spend").json()
        assert spent["reservation_id"] == routed.json()["allowance_reservation_id"]
        return str(spent["status"])

    program = [*command("uvicorn"), "--uds", "socket"]
    with running(program, directory, "Application startup complete", 2), ThreadPoolExecutor(CALLERS) as callers:
        assert list(callers.map(route_and_spend, requests())) == ["spent"] * JOBS
        with socket_client(directory) as client:
            refused = client.post("/jobs", json={**requests()[0], "execution_time_limit": 3000})
            assert refused.status_code == 503
            described = client.get("/openapi.json").json()
    assert described["paths"]["/jobs"]["post"]["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/JobRoute"
    }
    assert statuses(directory) == {"spent": JOBS}


FILES_AS_BROKER = """
app.conf.broker_transport_options = {"data_folder_in": "broker", "data_folder_out": "broker"}
"""
SEND = """
import json, sys
from tasks import pick, spend
from celery import chain

sent = [chain(pick.s(job), spend.s())() for job in json.loads(sys.argv[1])]
print([each.get(timeout=60)["status"] for each in sent])
"""


@pytest.mark.slow
def test_celery_with_two_worker_processes(directory: Path) -> None:
    """Tasks in forked worker processes route and settle; routes travel between them as JSON.

    The broker and the results are files, which needs no server.
    """
    (directory / "broker").mkdir()
    (directory / "results").mkdir()
    with (directory / "tasks.py").open("a") as tasks:
        tasks.write(FILES_AS_BROKER)
    instead_of_redis = {
        "CELERY_BROKER_URL": "filesystem://",
        "CELERY_RESULT_BACKEND": f"file://{directory}/results",
        "C_FORCE_ROOT": "1",
    }
    with running([*command("celery"), "--loglevel", "info"], directory, " ready.", 1, **instead_of_redis):
        sent = subprocess.run(
            [sys.executable, "-c", SEND, json.dumps(requests())],
            cwd=directory,
            env={**environment(directory), **instead_of_redis},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert sent.stdout.strip() == str(["spent"] * JOBS), sent.stderr
    assert statuses(directory) == {"spent": JOBS}


def run_in(project: Path, program: list[str], code: int = 0) -> str:
    ran = subprocess.run(
        program, cwd=project, env=environment(project), capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture
def project(directory: Path) -> Path:
    """A new Django project with the recipe's files; the settings are added to those that Django writes."""
    run_in(directory, [sys.executable, "-m", "django", "startproject", "mysite", "."])
    settings = directory / "mysite" / "settings.py"
    generated = settings.read_text()
    for path, text in files().items():
        (directory / path).write_text(generated + text if path == "mysite/settings.py" else text)
    return directory


ALLOWED_HOST = "\nALLOWED_HOSTS = ['recipe']\n"


@pytest.mark.slow
def test_a_django_project_under_gunicorn_with_preload(project: Path) -> None:
    """A view picks, and settles when its transaction commits, in two workers that gunicorn forked after the import.

    `manage.py check` and `manage.py allowance` work on the project's ledger.
    """
    settings = project / "mysite" / "settings.py"
    settings.write_text(settings.read_text() + ALLOWED_HOST)
    assert "no issues" in run_in(project, command("python manage.py check"))
    assert NETWORK.validator_ss58 in run_in(project, command("python manage.py allowance"))

    def run_job(job: dict[str, object]) -> int:
        with socket_client(project) as client:
            return client.get(f"/jobs/{job['executor_class']}/{job['uuid']}").status_code

    program = [*command("gunicorn"), "--bind", "unix:socket"]
    with running(program, project, "Booting worker", 2), ThreadPoolExecutor(CALLERS) as callers:
        assert list(callers.map(run_job, requests())) == [200] * JOBS
    assert statuses(project) == {"spent": JOBS}


def test_every_file_of_the_page_belongs_to_a_recipe() -> None:
    """A file that no test starts would rot."""
    assert set(files()) == {
        *("service.py", "tasks.py", "test_jobs.py", "mysite/settings.py", "mysite/views.py", "mysite/urls.py")
    }


def test_the_recipe_for_pytest(directory: Path) -> None:
    """The test that the page shows passes; the plugin is named, and not twice where the package has registered it."""
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:allowance", "-p", "routing.contrib.pytest_plugin"]
    assert "1 passed" in run_in(directory, [*program, "test_jobs.py"])
