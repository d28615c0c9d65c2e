"""profiles/kubernetes on a stand-in for a cluster: an API server that runs the command of each pod in an empty folder.

The client is the real one, so what it sends is what a cluster would get.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import yaml
from studies import ROOT

pytest.importorskip("snakemake_executor_plugin_kubernetes")
pytest.importorskip("snakemake_storage_plugin_fs", reason="not in the lock: pip install snakemake-storage-plugin-fs")
client = pytest.importorskip("kubernetes.client")

pytestmark = pytest.mark.whole
PROFILE = yaml.safe_load((ROOT / "profiles/kubernetes/config.yaml").read_text())
TARGET = "results/test/general/protein/card.json"


class ApiServer(ThreadingHTTPServer):
    """Takes jobs, and runs each one's container as a process of this machine, in a folder of its own."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.jobs: list[dict] = []
        self.pods: dict[str, subprocess.Popen] = {}

    def start_pod(self, job: dict) -> None:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        name = job["metadata"]["name"]
        self.jobs.append(job)
        (self.folder / name).mkdir()
        path = f"{self.folder}/commands:{os.environ['PATH']}"
        with open(self.folder / f"{name}.txt", "w") as said:
            self.pods[name] = subprocess.Popen(
                [*container["command"], *container["args"]],
                cwd=self.folder / name,
                env=os.environ | {"PATH": path},
                stdout=said,
                stderr=said,
            )

    def job_status(self, name: str) -> dict:
        status = self.pods[name].poll()
        return {} if status is None else {"failed": 1} if status else {"succeeded": 1}


class Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def reply(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/jobs"):
            self.server.start_pod(body)
        self.reply(body)

    def do_GET(self) -> None:
        *_, name, last = self.path.split("/")
        self.reply({"status": self.server.job_status(name)} if last == "status" else {"items": []})

    def do_DELETE(self) -> None:
        self.reply({"kind": "Status", "status": "Success"})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ApiServer]:
    server = ApiServer(tmp_path_factory.mktemp("pods"))
    commands = server.folder / "commands"
    commands.mkdir()
    for name, asked in (("python", f'exec "{sys.executable}" "$@"'), ("pip", "true")):  # what an image has already
        (commands / name).write_text(f"#!/bin/sh\n{asked}\n")
        (commands / name).chmod(0o755)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    for pod in server.pods.values():
        pod.kill()
        pod.wait()


@pytest.fixture(scope="module")
def finished(server, tmp_path_factory) -> Path:
    """The volume of a run that built a dataset."""
    folder, volume = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("volume")
    for name in ("config", "envs", "profiles", "scripts", "workflow"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "resources").symlink_to(ROOT / "resources")
    access = {"clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}]}
    access |= {"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "current-context": "c"}
    (folder / "access.yaml").write_text(yaml.safe_dump(access | {"users": [{"name": "u", "user": {}}]}))
    profile = folder / "profiles/kubernetes/config.yaml"
    profile.write_text(profile.read_text().replace("/loratory/", f"{volume}/"))
    asked = [sys.executable, "-m", "snakemake", TARGET, "--workflow-profile", "profiles/kubernetes"]
    asked += ["--configfile", "config/test.yaml", "--seconds-between-status-checks", "1"]
    done = subprocess.run(
        asked,
        cwd=folder,
        env=os.environ | {"KUBECONFIG": str(folder / "access.yaml")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    logs = "".join(path.read_text() for path in server.folder.glob("*.txt"))
    assert done.returncode == 0, done.stdout + logs
    return volume


def test_a_pod_that_shares_the_volume_and_nothing_else_makes_what_it_is_asked_for(server, finished):
    assert (finished / "files" / TARGET).is_file()
    assert len(server.jobs) == len(server.pods) == 2


def test_what_the_api_is_sent_are_jobs_of_its_own_schema(server, finished):
    api = client.ApiClient()
    for job in server.jobs:
        typed = api.deserialize(SimpleNamespace(data=json.dumps(job)), "V1Job")
        assert api.sanitize_for_serialization(typed) == job, "a field that the schema does not have would be lost"
        assert job["metadata"]["name"].startswith("snakejob-") and job["spec"]["backoffLimit"] == 0


def test_a_pod_asks_for_what_rule_and_profile_say(server, finished):
    pods = [job["spec"]["template"]["spec"] for job in server.jobs]
    assert {pod["restartPolicy"] for pod in pods} == {"Never"}, "Snakemake tries again, with more"
    containers = [container for pod in pods for container in pod["containers"]]
    assert [one["resources"]["limits"] for one in containers] == [
        {"cpu": "1000m", "memory": f"{memory}M", "ephemeral-storage": "5000M"} for memory in (1000, 1500)
    ]
    for pod, container in zip(pods, containers):
        assert container["image"] == PROFILE["container-image"]
        assert container["command"] == ["/bin/sh"] and "--mode 'remote'" in container["args"][1]
        assert container["env"] == [], "no variable of whoever starts the run, which may be a secret, goes there"
        claim, path = PROFILE["kubernetes-persistent-volumes"][0].split(":")
        assert {"name": claim, "persistentVolumeClaim": {"claimName": claim}} in pod["volumes"]
        assert {"name": claim, "mountPath": path} in container["volumeMounts"]
