"""Looks at what no other program looks at in the compose files, Dockerfiles, manifests and workflows."""

import re
import unittest

import yaml

from deploy.tests import settings
from deploy.tests.settings import ROOT

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

    def test_nothing_is_open_to_the_machine_or_its_network_but_the_live_page_to_the_machine(self):
        for file in (self.local, self.aws):
            for service in file["services"].values():
                self.assertFalse({"network_mode", "privileged"} & set(service))
            published = {name: service["ports"] for name, service in file["services"].items() if "ports" in service}
            self.assertEqual(published, {"feeder": ["127.0.0.1:${STATUS_PORT:-9101-9109}:9101"]})
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
        self.pods = {
            "feeder": self.found["Job", "bucket-brigade-feeder"]["spec"]["template"]["spec"],
            "consumer": self.found["Deployment", "bucket-brigade-consumer"]["spec"]["template"]["spec"],
        }

    def test_all_of_it_is_applied(self):
        listed = self.found["Kustomization", None]["resources"]
        self.assertEqual(set(listed) | {"kustomization.yaml"}, self.files)

    def test_every_setting_is_one(self):
        for program, pod in self.pods.items():
            (container,) = pod["containers"]
            names = set(self.migration) | {pair["name"] for pair in container["env"]}
            self.assertEqual(names - settings.known(program), set())
            self.assertEqual(settings.required(program) - names, set())

    def test_pods_need_no_rights_and_get_time_to_drain(self):
        for program, pod in self.pods.items():
            (container,) = pod["containers"]
            self.assertTrue(pod["securityContext"]["runAsNonRoot"])
            self.assertFalse(pod["automountServiceAccountToken"])
            self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
            self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})
            self.assertIn("--alive", container["livenessProbe"]["exec"]["command"])
            environment = {pair["name"]: pair.get("value") for pair in container["env"]}
            grace = seconds(environment.get("SHUTDOWN_GRACE", f"{GRACE}s"))
            self.assertGreater(pod["terminationGracePeriodSeconds"], grace, program)

    def test_consumers_follow_the_queue(self):
        scaled = self.found["ScaledObject", "bucket-brigade-consumer"]["spec"]
        self.assertIn(("Deployment", scaled["scaleTargetRef"]["name"]), self.found)
        self.assertNotIn("replicas", self.found["Deployment", "bucket-brigade-consumer"]["spec"])
        self.assertEqual(scaled["minReplicaCount"], 0)
        (trigger,) = scaled["triggers"]
        self.assertEqual(trigger["type"], "aws-sqs-queue")
        self.assertEqual(trigger["metadata"]["queueURL"], self.migration["QUEUE_URL"])
        self.assertIn(("TriggerAuthentication", trigger["authenticationRef"]["name"]), self.found)


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
