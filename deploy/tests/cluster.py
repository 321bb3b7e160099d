"""What Kubernetes' API server and its Job controller do with manifests, as far as a migration needs it.

Sources: ValidateJobUpdate and ValidateDeploymentUpdate of Kubernetes 1.33 for what is immutable, its documentation of
the pod failure policy for what becomes of an exit code.
"""

import itertools
import shlex

import yaml

from deploy.tests.settings import ROOT

# Of a Job all but these can never be changed; of a Deployment only its selector.
MUTABLE = {"parallelism", "backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "suspend"}


class Refused(Exception):
    """The API server's, or kubectl's, refusal."""


def manifests(path):
    """The objects of a file, or of a folder with a kustomization."""
    path = ROOT / path
    if path.is_dir():
        (listed,) = yaml.safe_load_all((path / "kustomization.yaml").read_text())
        return [one for name in listed["resources"] for one in manifests(path / name)]
    return list(yaml.safe_load_all(path.read_text()))


class Cluster:
    def __init__(self):
        self.objects = {}
        self.suffixes = itertools.count()

    def kubectl(self, line):
        """Carries out one documented command; returns the names of what it made or changed."""
        words = shlex.split(line)
        assert words[:3] == ["kubectl", "-n", "brigade"], line
        verb, flag, path = words[3:6]
        return [{"apply": self.apply, "create": self.create}[verb](one) for one in manifests(path)]

    def create(self, one):
        metadata = one["metadata"]
        name = metadata.get("name") or metadata["generateName"] + str(next(self.suffixes))
        if (one["kind"], name) in self.objects:
            raise Refused(f"{name} already exists")
        self.objects[one["kind"], name] = one
        return name

    def apply(self, one):
        if "name" not in one["metadata"]:
            raise Refused("cannot use generate name with apply")
        key = (one["kind"], one["metadata"]["name"])
        before = self.objects.get(key)
        if before and one["kind"] in ("Job", "Deployment"):
            old, new = before["spec"], one["spec"]
            fixed = {"selector"} if one["kind"] == "Deployment" else (set(old) | set(new)) - MUTABLE
            changed = [field for field in sorted(fixed) if old.get(field) != new.get(field)]
            if changed:
                raise Refused(f"{key}: {changed}: field is immutable")
        self.objects[key] = one
        return one["metadata"]["name"]


def action(job, code):
    """What becomes of a Job whose pod ended with this code: FailJob, Ignore, or Count towards its limit."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and code in codes["values"]:
            assert codes["operator"] == "In"
            assert codes["containerName"] == job["spec"]["template"]["spec"]["containers"][0]["name"]
            return rule["action"]
    return "Count"
