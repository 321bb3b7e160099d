"""Looks at what no other program looks at in the compose files, Dockerfiles, manifests and workflows."""

import re
import unittest

import yaml

from deploy.tests import settings
from deploy.tests.cluster import Cluster, Refused, action
from deploy.tests.settings import EXIT_CODES, ROOT

PROGRAMS = ("feeder", "consumer")


def load(path):
    return list(yaml.safe_load_all((ROOT / path).read_text()))


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text).group(1))


# What a consumer does without being told.
GRACE = seconds(re.search(r"^#SHUTDOWN_GRACE=(\S+)", settings.sample("consumer"), re.MULTILINE).group(1))


class ComposeTest(unittest.TestCase):
    def setUp(self):
        (self.local,) = load("docker-compose.yml")
        (self.aws,) = load("docker-compose.aws.yml")

    def test_every_setting_is_one(self):
        for program in PROGRAMS:
            environment = set(self.local["services"][program]["environment"])
            self.assertEqual(environment - settings.known(program), set())
            self.assertEqual(settings.required(program) - environment, set())
            self.assertIn("DATABASE_URL", environment)

    def test_connections_cannot_be_led_astray(self):
        # A .env beside the file may hold the settings of a real migration.
        for name, service in self.local["services"].items():
            for setting, value in service.get("environment", {}).items():
                if re.search("URL|BUCKET|PREFIX|KEY|TABLE|PASSWORD", setting):
                    self.assertNotIn("$", str(value), f"{setting} of {name}")

    def test_everything_waits_for_what_it_needs(self):
        services = self.local["services"]
        needs = {name: service.get("depends_on", {}) for name, service in services.items()}
        self.assertEqual(set(needs["seed"]), {"postgres", "cloud"})
        # Each by its name, or docker-compose stop ends Postgres and the cloud before they have drained.
        for name in ("feeder", "consumer", "application"):
            self.assertEqual(needs[name], needs["seed"] | {"seed": {"condition": "service_completed_successfully"}})
        conditions = {need["condition"] for need in needs["seed"].values()}
        self.assertEqual(conditions, {"service_healthy"})
        self.assertIn("healthcheck", services["postgres"])
        self.assertIn("HEALTHCHECK", (ROOT / services["cloud"]["build"]["dockerfile"]).read_text())

    def test_nothing_is_open_to_the_machine_or_its_network_but_the_live_page_and_its_images_to_the_machine(self):
        for file in (self.local, self.aws):
            for service in file["services"].values():
                self.assertFalse({"network_mode", "privileged"} & set(service))
            published = {name: service["ports"] for name, service in file["services"].items() if "ports" in service}
            page = {"feeder": ["127.0.0.1:${STATUS_PORT:-9101-9109}:9101"]}
            thumbnails = {"cloud": ["127.0.0.1:${S3_PORT:-9110}:4566"]} if file is self.local else {}
            self.assertEqual(published, page | thumbnails)
        environment = self.local["services"]["feeder"]["environment"]
        self.assertEqual(environment["STATUS_THUMBNAILS_ENDPOINT"], "http://127.0.0.1:${S3_PORT:-9110}")
        self.assertEqual(self.local["services"]["feeder"]["environment"]["STATUS_ADDR"], "0.0.0.0:9101")

    def test_programs_need_neither_rights_nor_a_writable_disk_and_get_time_to_drain(self):
        for file in (self.local, self.aws):
            for program in PROGRAMS:
                service = file["services"][program]
                self.assertTrue(service["read_only"])
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertGreater(seconds(service["stop_grace_period"]), GRACE)

    def test_aws_settings_come_from_the_programs_own_files(self):
        for program in PROGRAMS:
            self.assertEqual(self.aws["services"][program]["env_file"], f"{program}/.env")
            self.assertNotIn("environment", self.aws["services"][program])
        self.assertIn(".env", (ROOT / ".gitignore").read_text().split())


class DockerfileTest(unittest.TestCase):
    def setUp(self):
        self.files = {name: (ROOT / name / "Dockerfile").read_text() for name in (*PROGRAMS, "crates/testbed")}

    def test_all_share_one_build(self):
        stages = {text[text.index("FROM") : text.index("\n\n", text.index("FROM"))] for text in self.files.values()}
        self.assertEqual(len(stages), 1)

    def test_the_compiler_is_new_enough(self):
        wanted = re.search(r'rust-version = "(\d+)\.(\d+)', (ROOT / "Cargo.toml").read_text()).groups()
        given = re.search(r"rust:(\d+)\.(\d+)", self.files["feeder"]).groups()
        self.assertGreaterEqual(tuple(map(int, given)), tuple(map(int, wanted)))

    def test_an_image_runs_one_program_as_nobody(self):
        for program in PROGRAMS:
            text = self.files[program]
            path = f"/usr/local/bin/{program}"
            self.assertIn(f'ENTRYPOINT ["{path}"]', text)
            self.assertIn(f'CMD ["{path}", "healthcheck"]', text)
            self.assertIn("USER 65532:65532", text)
            self.assertIn("STOPSIGNAL SIGTERM", text)
            self.assertIn("org.opencontainers.image.licenses", text)
            # The frontend it names would have to be fetched.
            self.assertNotIn("# syntax=", text)

    def test_only_what_is_named_goes_into_a_build(self):
        rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
        self.assertEqual(rules[0], "*")
        self.assertIn("**/.env", rules[rules.index("!deploy/certificates") :])

    def test_whatever_the_sources_include_goes_into_a_build(self):
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        named = [ROOT / line[1:] for line in lines if line.startswith("!")]
        sources = [file for source in ("feeder/src", "consumer/src", "crates/common/src", "crates/operator/src") for file in (ROOT / source).rglob("*.rs")]
        included = [
            (file.parent / name).resolve()
            for file in sources
            for name in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', file.read_text())
        ]
        self.assertGreater(len(included), 3)
        left_out = [str(file) for file in included if not any(file.is_relative_to(part) for part in named)]
        self.assertEqual(left_out, [])


class KubernetesTest(unittest.TestCase):
    def setUp(self):
        self.files = {path.name for path in (ROOT / "deploy/kubernetes").glob("*.yaml")}
        found = [one for name in sorted(self.files) for one in load(f"deploy/kubernetes/{name}")]
        self.found = {(one["kind"], one.get("metadata", {}).get("name")): one for one in found}
        self.migration = self.found["ConfigMap", "bucket-brigade"]["data"]
        self.jobs = {path.stem: load(path)[0] for path in (ROOT / "deploy/kubernetes/jobs").glob("*.yaml")}
        self.pods = {name: job["spec"]["template"]["spec"] for name, job in self.jobs.items()}
        self.pods["consumer"] = self.found["Deployment", "bucket-brigade-consumer"]["spec"]["template"]["spec"]

    def environment(self, program):
        """The settings of a pod, from its maps and its own."""
        (container,) = self.pods[program]["containers"]
        maps = [self.found["ConfigMap", source["configMapRef"]["name"]]["data"] for source in container["envFrom"]]
        own = {pair["name"]: pair.get("value") for pair in container["env"]}
        return {name: value for one in [*maps, own] for name, value in one.items()}

    def test_all_of_it_is_applied(self):
        listed = self.found["Kustomization", None]["resources"]
        self.assertEqual(set(listed) | {"kustomization.yaml"}, self.files)
        self.assertEqual(set(self.jobs), {"plan", "canary", "feeder", "verify", "rollback", "clean"})

    def test_every_setting_is_one_and_the_run_is_given_to_the_plan_and_the_feeder_alone(self):
        for pod in self.pods:
            program = "consumer" if pod == "consumer" else "feeder"
            names = set(self.environment(pod))
            self.assertEqual(names - settings.known(program), set(), pod)
            # Whether the store honours If-None-Match is found out, not taken for granted.
            self.assertNotIn("CONDITIONAL_COPY", names)
            if pod in ("plan", "feeder", "canary", "consumer"):
                self.assertEqual(settings.required(program) - names, set(), pod)
            run = set(self.found["ConfigMap", "bucket-brigade-run"]["data"])
            self.assertEqual(bool(names & run), pod in ("plan", "feeder", "canary"), pod)

    def test_pods_need_no_rights_and_get_time_to_drain(self):
        for program, pod in self.pods.items():
            (container,) = pod["containers"]
            self.assertTrue(pod["securityContext"]["runAsNonRoot"])
            self.assertFalse(pod["automountServiceAccountToken"])
            self.assertIn(("ServiceAccount", pod["serviceAccountName"]), self.found)
            self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
            self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})
            self.assertIn("memory", container["resources"]["limits"])
            grace = seconds(self.environment(program).get("SHUTDOWN_GRACE", f"{GRACE}s"))
            self.assertGreater(pod["terminationGracePeriodSeconds"], grace, program)

    def test_a_rotated_password_is_read_again(self):
        for program, pod in self.pods.items():
            environment = self.environment(program)
            self.assertNotIn("PGPASSWORD", environment)
            (mount,), (volume,) = pod["containers"][0]["volumeMounts"], pod["volumes"]
            self.assertEqual(mount["name"], volume["name"])
            # By subPath the kubelet would not bring a change.
            self.assertEqual(set(mount), {"name", "mountPath", "readOnly"})
            (item,) = volume["secret"]["items"]
            self.assertEqual(environment["DATABASE_PASSWORD_FILE"], f"{mount['mountPath']}/{item['path']}")
            user = next(pair for pair in pod["containers"][0]["env"] if pair["name"] == "PGUSER")
            self.assertEqual(user["valueFrom"]["secretKeyRef"]["name"], volume["secret"]["secretName"])

    def test_no_job_changes_or_removes_anything_as_it_is_shipped_but_the_feeders(self):
        for name, pod in self.pods.items():
            arguments = pod["containers"][0].get("args", [])
            self.assertFalse({"--yes", "--confirm", "--recopy"} & set(arguments), name)
        # The flags that the comments give are the programs' own.
        for name, flag in (("rollback", "--all, --yes]"), ("clean", "30days, --confirm, old-images]"), ("feeder", "args: [--watch]")):
            self.assertIn(flag, (ROOT / f"deploy/kubernetes/jobs/{name}.yaml").read_text())

    def test_the_plan_is_for_as_many_consumers_as_there_can_be(self):
        arguments = self.pods["plan"]["containers"][0]["args"]
        most = self.found["ScaledObject", "bucket-brigade-consumer"]["spec"]["maxReplicaCount"]
        self.assertEqual(arguments[arguments.index("--consumers") + 1], str(most))

    def test_only_what_listens_is_probed(self):
        for program, pod in self.pods.items():
            (container,) = pod["containers"]
            probes = {name for name in container if name.endswith("Probe")}
            if program in ("plan", "verify", "rollback", "clean"):
                self.assertEqual(probes, set(), program)
                self.assertEqual(container["args"][0], program)
                self.assertNotIn("METRICS_ADDR", self.environment(program))
            else:
                self.assertIn("--alive", container["livenessProbe"]["exec"]["command"])
                self.assertEqual(self.environment(program)["METRICS_ADDR"], "0.0.0.0:9100")

    def test_the_documented_commands_are_carried_out_again_and_again(self):
        documented = re.findall(r"kubectl -n brigade (?:apply -k|create -f) [\w./-]+", (ROOT / "docs/deploy.md").read_text())
        commands = list(dict.fromkeys(documented))
        files = {command.split("/")[-1] for command in commands}
        self.assertEqual(files, {f"{name}.yaml" for name in self.jobs} | {"kubernetes"})
        in_order = [command.split("/")[-1] for command in commands]
        self.assertEqual(in_order[:4], ["kubernetes", "plan.yaml", "canary.yaml", "feeder.yaml"])
        cluster = Cluster()
        for command in [*commands, *commands]:
            cluster.kubectl(command)
        made = [name for kind, name in cluster.objects if kind == "Job"]
        self.assertEqual(len(made), 2 * len(self.jobs))
        # What one Job for both would meet.
        named = {"kind": "Job", "metadata": {"name": "feeder"}}
        cluster.apply(named | {"spec": self.jobs["canary"]["spec"]})
        with self.assertRaisesRegex(Refused, "template.*immutable"):
            cluster.apply(named | {"spec": self.jobs["feeder"]["spec"]})

    def test_a_job_outlives_its_node_and_waits_for_the_lock(self):
        findings = {
            "plan": {"CHECK_FAILED"},
            "canary": {"ROWS_FAILED", "NOTHING_IN_SCOPE"},
            "feeder": {"ROWS_FAILED", "NOTHING_IN_SCOPE"},
            "verify": {"CHECK_FAILED"},
            "rollback": {"ROWS_FAILED"},
            "clean": {"CHECK_FAILED", "ROWS_FAILED"},
        }
        for name, job in self.jobs.items():
            final = {EXIT_CODES[code] for code in findings[name] | {"INVALID_SETTINGS", "NO_PERMISSION"}}
            for code in set(EXIT_CODES.values()) - {EXIT_CODES["DONE"]} | {137, 143}:
                # A plan takes no lock.
                waits = code == EXIT_CODES["ANOTHER_FEEDER"] and name != "plan"
                expected = "FailJob" if code in final else "Ignore" if waits else "Count"
                self.assertEqual(action(job, code), expected, f"{name}: {code}")
            # Without a replacement while the pod of a lost node counts as running: a policy forbids more anyway.
            self.assertEqual(job["spec"]["template"]["spec"]["restartPolicy"], "Never")
            self.assertGreater(job["spec"]["backoffLimit"], 6)
            lost = {taint["key"]: taint["tolerationSeconds"] for taint in self.pods[name]["tolerations"]}
            self.assertEqual(lost, {f"node.kubernetes.io/{state}": 60 for state in ("not-ready", "unreachable")})
            conditions = [rule["onPodConditions"][0]["type"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onPodConditions" in rule]
            self.assertEqual(conditions, ["DisruptionTarget"])

    def test_the_network_lets_in_prometheus_and_out_what_is_needed(self):
        policy = self.found["NetworkPolicy", "bucket-brigade"]["spec"]
        labels = policy["podSelector"]["matchLabels"].items()
        templates = [job["spec"]["template"] for job in self.jobs.values()]
        templates.append(self.found["Deployment", "bucket-brigade-consumer"]["spec"]["template"])
        for template in templates:
            self.assertLessEqual(labels, template["metadata"]["labels"].items())
        (ingress,) = policy["ingress"]
        self.assertEqual([port["port"] for port in ingress["ports"]], [9100])
        self.assertTrue(ingress["from"])
        out = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        self.assertEqual(out, {53, 80, 443, 4318, 5432})
        self.assertTrue(all(rule["to"] for rule in policy["egress"]))

    def test_consumers_follow_the_queue(self):
        scaled = self.found["ScaledObject", "bucket-brigade-consumer"]["spec"]
        self.assertIn(("Deployment", scaled["scaleTargetRef"]["name"]), self.found)
        self.assertNotIn("replicas", self.found["Deployment", "bucket-brigade-consumer"]["spec"])
        self.assertEqual(scaled["minReplicaCount"], 0)
        (trigger,) = scaled["triggers"]
        self.assertEqual(trigger["type"], "aws-sqs-queue")
        self.assertEqual(trigger["metadata"]["queueURL"], self.migration["QUEUE_URL"])
        self.assertIn(("TriggerAuthentication", trigger["authenticationRef"]["name"]), self.found)
        concurrency = int(self.environment("consumer")["MAX_CONCURRENCY"])
        each = int(trigger["metadata"]["queueLength"])
        self.assertEqual(each, 500 + concurrency + min(concurrency, 200) + 200)
        backlog = int(re.search(r"^#MAX_BACKLOG=(\d+)", settings.sample("feeder"), re.MULTILINE).group(1))
        self.assertLessEqual(scaled["maxReplicaCount"] * each, int(self.environment("feeder").get("MAX_BACKLOG", backlog)))


def numbers(version):
    return [int(part) for part in version.split(".")]


class VersionTest(unittest.TestCase):
    def test_every_image_is_of_this_version_and_no_release_has_it_before_it_is_released(self):
        version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
        files = [file for folder in ("deploy", "docs") for file in (ROOT / folder).rglob("*") if file.suffix in (".md", ".yaml")]
        tags = [tag for file in files for tag in re.findall(r"bucket-brigade-[a-z$]+:([\w.]+)", file.read_text())]
        self.assertGreater(len(tags), 8)
        self.assertEqual(set(tags), {version})
        changelog = (ROOT / "CHANGELOG.md").read_text()
        unreleased = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
        released = re.search(r"^## \[(\d+\.\d+\.\d+)\] - ", changelog, re.MULTILINE).group(1)
        if unreleased and unreleased.group(1).strip():
            # Or two builds that behave differently would print the same version.
            self.assertGreater(numbers(version), numbers(released))
        else:
            self.assertEqual(version, released)


class WorkflowTest(unittest.TestCase):
    def test_actions_are_pinned_and_rights_are_few(self):
        for path in (ROOT / ".github/workflows").glob("*.yml"):
            text = path.read_text()
            for used in re.findall(r"uses: (\S+)", text):
                self.assertRegex(used, r"^(\./|[\w./-]+@[0-9a-f]{40}$)", path.name)
            workflow = yaml.safe_load(text)
            self.assertEqual(workflow["permissions"], {"contents": "read"}, path.name)
            self.assertEqual(text.count("actions/checkout@"), text.count("persist-credentials: false"), path.name)


if __name__ == "__main__":
    unittest.main()
