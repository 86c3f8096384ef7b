"""The files in infra/ against schemas that others wrote: Kubernetes', KubeRay's, Ray's own, those of AWS' services."""

from __future__ import annotations

import copy
import fnmatch
import gzip
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.exceptions import ParamValidationError
from botocore.validate import validate_parameters

from jobs.cli import build_parser
from pipeline.config import load_config
from tests.pace import paced

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
MANIFESTS = ("rayjob.yaml", "raycluster.yaml")
SPOT_NOTICE_S = 120


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((INFRA / "kuberay" / name).read_text()))


def cluster_spec(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = documents(name)[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def locked(package: str) -> str:
    match = re.search(rf"^{package}==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert match
    return match[1]


def project_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


@pytest.fixture(scope="module")
def kubernetes() -> dict[str, Any]:
    with gzip.open(ROOT / "tests/fixtures/kubernetes_schema.json.gz") as file:
        schema: dict[str, Any] = json.load(file)
    return schema


def check_document(schema: dict[str, Any], document: dict[str, Any]) -> None:
    kind = schema["kinds"][f"{document['apiVersion']}/{document['kind']}"]
    jsonschema.validate(document, {"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]})


# ---- KubeRay ----


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_no_field_that_kubernetes_and_kuberay_do_not_know(name: str, kubernetes: dict[str, Any]) -> None:
    found = documents(name)
    assert [document["kind"] for document in found] == [
        "ServiceAccount",
        {"rayjob.yaml": "RayJob"}.get(name, "RayCluster"),
    ]
    for document in found:
        check_document(kubernetes, document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backofLimit"), 3),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), "0"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "ressources"), {}),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "terminationGracePeriodSeconds"), "30s"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "on"),
    ],
)
@pytest.mark.sampled(6)
def test_the_schema_refuses_what_a_cluster_would(path: tuple[Any, ...], value: Any, kubernetes: dict[str, Any]) -> None:
    job = copy.deepcopy(documents("rayjob.yaml")[-1])
    place = job
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_document(kubernetes, job)


def test_both_manifests_describe_the_same_cluster_of_the_locked_ray() -> None:
    job, cluster = map(cluster_spec, MANIFESTS)
    assert job == cluster
    assert job["rayVersion"] == locked("ray")
    images = {container["image"] for group in groups(job) for container in group["template"]["spec"]["containers"]}
    assert images == {f"registry.example.com/miga-on-ray:{project_version()}"}


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_container_says_how_it_authenticates_and_holds_no_secret(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"}
    for group in groups(spec):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            values = {item["name"]: item["value"] for item in container["env"]}
            assert values["RAY_AUTH_MODE"] == "token"
            assert not [key for key in values if re.search(r"KEY|SECRET|PASSWORD|(?<!AUTH_)TOKEN", key)]
    assert not re.search(r"AKIA|aws_secret|password:", (INFRA / "kuberay" / name).read_text(), re.IGNORECASE)


def test_a_spot_worker_has_time_to_drain_and_a_head_gives_way_at_once() -> None:
    head, worker = groups(cluster_spec("rayjob.yaml"))

    def drain_s(group: dict[str, Any]) -> float:
        (container,) = group["template"]["spec"]["containers"]
        return float(
            {item["name"]: item["value"] for item in container["env"]}["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
        )

    grace_s = worker["template"]["spec"]["terminationGracePeriodSeconds"]
    assert 30 < drain_s(worker) < grace_s < SPOT_NOTICE_S
    assert drain_s(head) == 0
    assert "lifecycle" not in worker["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("exit_status", [0, 1, 2])
def test_a_complete_run_with_quarantined_rows_is_no_failed_job(exit_status: int, tmp_path: Path) -> None:
    """The command itself ends with 0 there (`--failed-rows-ok`); what else it ends with is the job's."""
    fake = tmp_path / "miga"
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nexit {exit_status}\n')
    fake.chmod(0o755)
    entrypoint = documents("rayjob.yaml")[-1]["spec"]["entrypoint"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert (
        subprocess.run(entrypoint, shell=True, env={"PATH": path}, check=False, timeout=paced(20)).returncode
        == exit_status
    )
    options = build_parser().parse_args((tmp_path / "arguments").read_text().split())
    assert (options.prompts, options.out) == ("s3://bucket/prompts.parquet", "s3://bucket/run")
    assert options.failed_rows_ok


def test_a_retry_that_meets_the_attempt_before_has_another_one() -> None:
    spec = documents("rayjob.yaml")[-1]["spec"]
    assert spec["backoffLimit"] >= 2
    assert spec["shutdownAfterJobFinishes"] is True


def test_the_jobs_runtime_environment_is_one_that_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    values = yaml.safe_load((INFRA / "runtime_env.yaml").read_text())
    assert RuntimeEnv(**values).to_dict()["env_vars"] == values["env_vars"]
    assert "RAY_AUTH_MODE" not in values["env_vars"]  # it would override the cluster's
    in_job = yaml.safe_load(documents("rayjob.yaml")[-1]["spec"]["runtimeEnvYAML"])
    assert in_job["env_vars"] == values["env_vars"]
    with pytest.raises((TypeError, ValueError)):
        RuntimeEnv(**(values | {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": 60}}))


def test_the_runs_config_asks_for_what_the_cluster_may_have_and_saves_in_time() -> None:
    config = load_config(INFRA / "run.toml")
    (worker,) = cluster_spec("rayjob.yaml")["workerGroupSpecs"]
    (container,) = worker["template"]["spec"]["containers"]
    assert config.workers.num_actors is None  # a fixed number would neither grow nor shrink
    assert config.workers.max_actors == worker["maxReplicas"]
    assert config.workers.gpus_per_actor == float(container["resources"]["limits"]["nvidia.com/gpu"])
    assert config.workers.cpus_per_actor <= float(container["resources"]["requests"]["cpu"])
    stop_wait_s = yaml.safe_load((INFRA / "runtime_env.yaml").read_text())["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert config.run.stop_grace_s < int(stop_wait_s)
    entrypoint = documents("rayjob.yaml")[-1]["spec"]["entrypoint"]
    assert "--config /app/infra/run.toml" in entrypoint
    aws = yaml.safe_load((INFRA / "aws/cluster.yaml").read_text())
    assert config.workers.max_actors == aws["max_workers"]


# ---- EC2 ----


@pytest.fixture
def ray_cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((INFRA / "aws/cluster.yaml").read_text())
    return config


def test_rays_own_check_takes_the_cluster_file(ray_cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(ray_cluster)
    validate_config(prepared)
    workers = {
        name: kind for name, kind in prepared["available_node_types"].items() if name != prepared["head_node_type"]
    }
    assert sum(kind["max_workers"] for kind in workers.values()) >= prepared["max_workers"] > 0
    assert all(kind["resources"]["GPU"] == 1 for kind in workers.values())

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(ray_cluster | {"max_worker": 3}))


def test_ec2_takes_the_instances_that_the_cluster_file_asks_for(ray_cluster: dict[str, Any]) -> None:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, kind in ray_cluster["available_node_types"].items():
        node = kind["node_config"]
        validate_parameters({"MinCount": 1, "MaxCount": 1} | node, shape)
        with pytest.raises(ParamValidationError):
            validate_parameters({"MinCount": 1, "MaxCount": 1, "InstanceTyp": "g6.xlarge"} | node, shape)
        assert ("InstanceMarketOptions" in node) == (name != ray_cluster["head_node_type"])
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(device["Ebs"]["Encrypted"] for device in node["BlockDeviceMappings"])


def test_on_ec2_the_dashboard_is_on_loopback_and_every_node_says_how_it_authenticates(
    ray_cluster: dict[str, Any],
) -> None:
    (start,) = [command for command in ray_cluster["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=disabled" in ray_cluster["docker"]["run_options"]
    (start,) = [command for command in ray_cluster["worker_start_ray_commands"] if "RAY_HEAD_IP" in command]
    script = re.search(r"/app/(\S+\.py)", start)
    assert script
    assert (ROOT / script[1]).is_file()
    drain = re.search(r"DRAIN_TIMEOUT_S=(\d+)", start)
    assert drain
    assert 30 < int(drain[1]) < SPOT_NOTICE_S


# ---- the bucket ----


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield


def test_s3_takes_the_lifecycle_rules(aws: None) -> None:
    import boto3

    rules = json.loads((INFRA / "aws/bucket-lifecycle.json").read_text())
    operation = botocore.session.get_session().get_service_model("s3").operation_model(
        "PutBucketLifecycleConfiguration"
    )  # fmt: skip
    validate_parameters({"Bucket": "bucket", "LifecycleConfiguration": rules}, operation.input_shape)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    client.put_bucket_lifecycle_configuration(Bucket="bucket", LifecycleConfiguration=rules)
    kept = client.get_bucket_lifecycle_configuration(Bucket="bucket")["Rules"]
    assert [rule["ID"] for rule in kept] == [rule["ID"] for rule in rules["Rules"]]
    assert all(rule["Status"] == "Enabled" for rule in rules["Rules"])


def test_nothing_that_a_run_counts_on_ever_expires() -> None:
    for rule in json.loads((INFRA / "aws/bucket-lifecycle.json").read_text())["Rules"]:
        if "Days" in rule.get("Expiration", {}):
            assert rule["Filter"]["Prefix"].endswith("/checkpoint/")
    for rule in json.loads((INFRA / "gcp/bucket-lifecycle.json").read_text())["rule"]:
        assert rule["action"]["type"] in ("AbortIncompleteMultipartUpload", "Delete")
        if rule["action"]["type"] == "Delete" and "daysSinceNoncurrentTime" not in rule["condition"]:
            assert all(prefix.endswith("/checkpoint/") for prefix in rule["condition"]["matchesPrefix"])


@pytest.mark.parametrize("name", ["iam-run-policy.json", "iam-head-policy.json"])
def test_iam_takes_the_policies(name: str, aws: None) -> None:
    import boto3

    text = (INFRA / "aws" / name).read_text()
    client = boto3.client("iam")
    client.create_policy(PolicyName="miga", PolicyDocument=text)
    with pytest.raises(client.exceptions.MalformedPolicyDocumentException):
        client.create_policy(PolicyName="other", PolicyDocument=text.replace('"Action"', '"Actions"'))


def test_a_run_may_do_what_storage_does_and_no_more() -> None:
    policy = json.loads((INFRA / "aws/iam-run-policy.json").read_text())
    actions = {
        action
        for statement in policy["Statement"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    assert actions == {
        "s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
        "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
    }  # fmt: skip
    writing = [statement for statement in policy["Statement"] if "s3:PutObject" in statement["Action"]]
    assert [statement["Resource"] for statement in writing] == ["arn:aws:s3:::bucket/run/*"]


# ---- the image ----


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and argument of each line of a container file, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def ignored(path: str) -> bool:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    names = [path.removeprefix("/"), *(str(parent) for parent in Path(path).parents)]
    return any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for pattern in patterns for name in names)


def test_the_image_is_pinned_and_runs_as_nobody_in_particular() -> None:
    lines = instructions((INFRA / "Containerfile").read_text())
    bases = [argument for name, argument in lines if name == "FROM"]
    assert len({base.split(" AS ")[0] for base in bases}) == 1
    assert all(re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-\w+( AS \w+)?", base) for base in bases)
    final = lines[max(index for index, (name, _) in enumerate(lines) if name == "FROM") :]
    (user,) = [argument for name, argument in final if name == "USER"]
    assert user == "1000"  # a number: Kubernetes can tell that it is not root
    assert [name for name, _ in final].index("USER") > max(i for i, (name, _) in enumerate(final) if name == "RUN")
    assert not [name for name, _ in lines if name == "ADD"]
    for name, argument in lines:
        if name in ("ARG", "ENV"):
            assert not re.search(r"TOKEN|SECRET|PASSWORD|_KEY", argument)
        if "apt-get install" in argument:
            assert "--no-install-recommends" in argument
            assert "rm -rf /var/lib/apt/lists" in argument


def test_what_the_image_copies_is_there_and_what_it_must_not_hold_is_left_out() -> None:
    lines = instructions((INFRA / "Containerfile").read_text())
    sources = [argument.split()[0] for name, argument in lines if name == "COPY" and "--from" not in argument]
    assert sources == ["requirements.lock", "."]
    for path in ("requirements.lock", "pyproject.toml", "README.md", "LICENSE", "jobs/cli.py", "infra/aws/spot_node.py",
                 "miga/backbones/sprites/checkpoint/vae/diffusion_pytorch_model.safetensors"):  # fmt: skip
        assert (ROOT / path).is_file()
        assert not ignored(path), path
    for path in (".git/config", ".venv/bin/python", ".env", ".env.local", "training/state.pt", "demo-out/run.json"):
        assert ignored(path), path


def test_the_page_names_every_file_of_infra() -> None:
    page = (ROOT / "docs/cluster.md").read_text()
    files = [path.relative_to(ROOT) for path in INFRA.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert [str(path) for path in files if str(path) not in page and "infra/ceph" not in str(path)] == []
