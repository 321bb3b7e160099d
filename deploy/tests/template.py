"""Deploys deploy/ecs/template.yaml into a local CloudFormation and looks at what came of it."""

import json
import os
import re
import unittest

os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")

from moto import mock_aws  # noqa: E402  (it reads the environment)

from deploy.tests import settings  # noqa: E402
from deploy.tests.cloud import REGION, asked, client  # noqa: E402

TEMPLATE = settings.ROOT / "deploy/ecs/template.yaml"
STACK = "brigade"
KEY = f"arn:aws:kms:{REGION}:123456789012:key/"
# AWS's limits: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
TEMPLATE_BYTES = 51_200


def deploy(**given):
    """Deploys with these parameters over the ones that have no default; returns the stack's resources by name."""
    vpc = client("ec2").create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        client("ec2").create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24")["Subnet"]["SubnetId"] for n in range(2)
    ]
    secrets = [
        client("secretsmanager").create_secret(Name=name, SecretString="{}")["ARN"] for name in ("feeder", "consumer")
    ]
    parameters = {
        "VpcId": vpc,
        "SubnetIds": ",".join(subnets),
        "FeederImage": "registry.example/feeder@sha256:0",
        "ConsumerImage": "registry.example/consumer@sha256:0",
        "DatabaseHost": "db.example",
        "DatabaseName": "app",
        "FeederSecretArn": secrets[0],
        "ConsumerSecretArn": secrets[1],
        "ImagesTable": "public.images",
        "SourceBucketName": "old-images",
        "DestinationBucketName": "new-images",
        "OldPrefix": "image/",
        "NewPrefix": "avatar/",
    } | given
    parameters = {name: value(vpc) if callable(value) else value for name, value in parameters.items()}
    client("cloudformation").create_stack(
        StackName=STACK,
        TemplateBody=TEMPLATE.read_text(),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
    )
    listed = client("cloudformation").describe_stack_resources(StackName=STACK)["StackResources"]
    # moto lists what a condition left out, without a name.
    made = [resource for resource in listed if "LogicalResourceId" in resource]
    return {resource["LogicalResourceId"]: resource.get("PhysicalResourceId") for resource in made}


def statements(role):
    """The statements of all policies of a role."""
    iam = client("iam")
    found = []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        found += iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]["Statement"]
    attached = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    assert not attached, f"{role} has more rights than the template spells out: {attached}"
    return found


def listed(value):
    return value if isinstance(value, list) else [value]


def rights(policy_statements):
    """Pairs of action and resource, each granted once."""
    pairs = [
        (action, resource)
        for statement in policy_statements
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    ]
    assert all(statement["Effect"] == "Allow" for statement in policy_statements)
    assert len(pairs) == len(set(pairs)), "a right is granted twice"
    return set(pairs)


def documented(file, words):
    """The rights in deploy/policies, which another test holds to the calls that the programs make."""
    text = (settings.ROOT / "deploy/policies" / file).read_text()
    for word, value in words:
        text = text.replace(word, value)
    return rights(json.loads(text)["Statement"])


class Deployed(unittest.TestCase):
    """What the tests look at the deployed stack with."""

    def words(self, queue, source="image/", destination="avatar/"):
        queue_arn, redrive = queue["QueueArn"], json.loads(queue["RedrivePolicy"])
        return [
            ("arn:aws:sqs:REGION:ACCOUNT:DEAD_LETTER_QUEUE", redrive["deadLetterTargetArn"]),
            ("arn:aws:sqs:REGION:ACCOUNT:QUEUE", queue_arn),
            ("SOURCE_BUCKET/SOURCE_KEY_PREFIX", f"old-images/{source}"),
            ("DESTINATION_BUCKET/DESTINATION_KEY_PREFIX", f"new-images/{destination}"),
            ("SOURCE_BUCKET", "old-images"),
            ("DESTINATION_BUCKET", "new-images"),
        ]

    def queue(self, url):
        return client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]

    def task(self, arn):
        return client("ecs").describe_task_definition(taskDefinition=arn)["taskDefinition"]

    def services(self, stack):
        arns = [arn for name, arn in stack.items() if name.endswith("Service")]
        made = client("ecs").describe_services(cluster=stack["Cluster"], services=arns)["services"]
        return [service | asked[service["serviceName"]] for service in made]

    def consumer(self, stack):
        (found,) = (service for service in self.services(stack) if "Consumer" in service["serviceName"])
        return found

    def alarms(self):
        return {alarm["AlarmName"].split("-")[1]: alarm for alarm in client("cloudwatch").describe_alarms()["MetricAlarms"]}

    def scaling(self):
        scaling = client("application-autoscaling")
        target = scaling.describe_scalable_targets(ServiceNamespace="ecs")["ScalableTargets"]
        policies = scaling.describe_scaling_policies(ServiceNamespace="ecs")["ScalingPolicies"]
        return target, {policy["PolicyName"]: policy for policy in policies}

    def environment(self, task):
        container = self.task(task)["containerDefinitions"][0]
        return {pair["name"]: pair["value"] for pair in container["environment"]}


class DefaultsTest(Deployed):
    """The stack as it is with nothing but what must be given."""

    @classmethod
    def setUpClass(cls):
        mock = mock_aws()
        mock.start()
        cls.addClassCleanup(mock.stop)
        cls.stack = deploy()

    def test_it_fits_into_one_command(self):
        # More would need a bucket to upload it to; and CloudFormation refuses aliases.
        text = TEMPLATE.read_text()
        self.assertLess(len(text.encode()), TEMPLATE_BYTES)
        self.assertNotRegex(text, r"(?m)(: |- )[&*][a-z]")

    def test_the_queue_and_its_dead_letter_queue(self):
        stack = self.stack
        queue, dead = self.queue(stack["Queue"]), self.queue(stack["DeadLetterQueue"])
        redrive = json.loads(queue["RedrivePolicy"])
        self.assertEqual(redrive["deadLetterTargetArn"], dead["QueueArn"])
        self.assertEqual(int(redrive["maxReceiveCount"]), 5)
        self.assertEqual(int(dead["MessageRetentionPeriod"]), 14 * 86_400)
        self.assertLess(int(queue["MessageRetentionPeriod"]), int(dead["MessageRetentionPeriod"]))
        self.assertNotIn("FifoQueue", queue)

    def test_each_program_may_do_what_it_does_and_no_more(self):
        stack = self.stack
        words = self.words(self.queue(stack["Queue"]))
        feeder = rights(statements(stack["FeederTaskRole"]))
        self.assertEqual(feeder, documented("feeder.json", words))
        consumer = rights(statements(stack["ConsumerTaskRole"]))
        self.assertEqual(consumer, documented("consumer.json", words))

    def test_only_tasks_of_this_account_may_take_the_roles(self):
        stack = self.stack
        for role in ("FeederTaskRole", "ConsumerTaskRole", "FeederExecutionRole", "ConsumerExecutionRole"):
            trust = client("iam").get_role(RoleName=stack[role])["Role"]["AssumeRolePolicyDocument"]["Statement"]
            self.assertEqual([statement["Principal"] for statement in trust], [{"Service": "ecs-tasks.amazonaws.com"}])
            self.assertIn("aws:SourceAccount", trust[0]["Condition"]["StringEquals"])

    def test_each_program_starts_with_its_own_secret_and_log(self):
        stack = self.stack
        for program in ("Feeder", "Consumer"):
            container = self.task(stack[f"{program}Task"])["containerDefinitions"][0]
            granted = rights(statements(stack[f"{program}ExecutionRole"]))
            secrets = {right[1] for right in granted if right[0] == "secretsmanager:GetSecretValue"}
            self.assertEqual(len(secrets), 1)
            taken = {secret["name"]: secret["valueFrom"] for secret in container["secrets"]}
            self.assertEqual(
                taken, {"PGUSER": f"{min(secrets)}:username::", "PGPASSWORD": f"{min(secrets)}:password::"}
            )
            group = container["logConfiguration"]["options"]["awslogs-group"]
            kept = client("logs").describe_log_groups(logGroupNamePrefix=group)["logGroups"]
            self.assertEqual([log["retentionInDays"] for log in kept], [30])
            self.assertTrue(any(right[0] == "logs:PutLogEvents" and group in right[1] for right in granted))
            self.assertFalse([right for right in granted if right[1] == "*" and right[0] != "ecr:GetAuthorizationToken"])

    def test_the_tasks(self):
        stack = self.stack
        for program in ("feeder", "consumer"):
            task = self.task(stack[f"{program.capitalize()}Task"])
            self.assertEqual(task["networkMode"], "awsvpc")
            self.assertEqual(task["requiresCompatibilities"], ["FARGATE"])
            self.assertEqual(task["runtimePlatform"], {"cpuArchitecture": "ARM64", "operatingSystemFamily": "LINUX"})
            (container,) = task["containerDefinitions"]
            self.assertTrue(container["readonlyRootFilesystem"])
            self.assertEqual(container["user"], "65532:65532")
            self.assertEqual(container["linuxParameters"], {"capabilities": {"drop": ["ALL"]}})
            self.assertEqual(
                container["healthCheck"]["command"], ["CMD", f"/usr/local/bin/{program}", "healthcheck", "--alive"]
            )
            self.assertLessEqual(container["stopTimeout"], 120)
        grace = self.environment(stack["ConsumerTask"])["SHUTDOWN_GRACE"]
        self.assertLess(int(grace.rstrip("s")), container["stopTimeout"])

    def test_every_setting_is_one(self):
        stack = self.stack
        for program in ("feeder", "consumer"):
            environment = set(self.environment(stack[f"{program.capitalize()}Task"]))
            secrets = {"PGUSER", "PGPASSWORD"}
            self.assertEqual(environment - settings.known(program), set())
            self.assertEqual(settings.required(program) - environment - secrets, set())
            self.assertIn("PGHOST", environment)
            # Whether the store honours If-None-Match is found out, not taken for granted.
            self.assertNotIn("CONDITIONAL_COPY", environment)

    def test_the_feeder_is_a_service_that_an_alarm_watches(self):
        stack = self.stack
        self.assertEqual(self.task(stack["FeederTask"])["containerDefinitions"][0]["command"], ["--watch"])
        feeder = next(service for service in self.services(stack) if "Feeder" in service["serviceName"])
        self.assertEqual(feeder["desiredCount"], 1)
        alarm = self.alarms()["UnhealthyFeeder"]
        self.assertEqual((alarm["MetricName"], alarm["TreatMissingData"]), ("RunningTaskCount", "breaching"))

    def test_a_deployment_that_cannot_start_goes_back(self):
        services = self.services(self.stack)
        self.assertEqual(len(services), 2)
        for service in services:
            configuration = service["deploymentConfiguration"]
            self.assertEqual(configuration["deploymentCircuitBreaker"], {"enable": True, "rollback": True})
            # Never two feeders, never more consumers than connections.
            self.assertEqual(configuration["maximumPercent"], 100)

    def test_consumers_that_are_held_back_are_counted_from_the_feeders_log(self):
        stack = self.stack
        group = self.task(stack["FeederTask"])["containerDefinitions"][0]["logConfiguration"]["options"]["awslogs-group"]
        (found,) = client("logs").describe_metric_filters(logGroupName=group)["metricFilters"]
        (made,) = found["metricTransformations"]
        self.assertEqual(found["filterPattern"], "{ $.held_back = * }")
        self.assertEqual((made["metricValue"], made["defaultValue"]), ("$.held_back", 0))
        self.assertIn("held_back", (settings.ROOT / "feeder/src/display.rs").read_text())
        _, policies = self.scaling()
        metrics = policies["load-per-consumer"]["TargetTrackingScalingPolicyConfiguration"]["CustomizedMetricSpecification"]["Metrics"]
        held = next(metric["MetricStat"]["Metric"] for metric in metrics if metric["Id"] == "held")
        self.assertEqual((held["Namespace"], held["MetricName"]), (made["metricNamespace"], made["metricName"]))

    def test_the_first_consumer_starts_and_the_last_one_ends(self):
        stack = self.stack
        _, policies = self.scaling()
        alarms = self.alarms()
        for alarm, policy, capacity in (
            ("WorkWithoutConsumers", "first-consumer", 1),
            ("NothingToDo", "last-consumer", 0),
        ):
            self.assertEqual(alarms[alarm]["AlarmActions"], [policies[policy]["PolicyARN"]])
            steps = policies[policy]["StepScalingPolicyConfiguration"]
            self.assertEqual(steps["AdjustmentType"], "ExactCapacity")
            self.assertEqual([step["ScalingAdjustment"] for step in steps["StepAdjustments"]], [capacity])
        # An exact capacity of 1 must not end those that run; messages in flight are work, too.
        self.assertIn("IF(FILL(running, 0) > 0, 0, visible)", str(alarms["WorkWithoutConsumers"]["Metrics"]))
        self.assertIn("visible + inflight", str(alarms["NothingToDo"]["Metrics"]))
        cluster = client("ecs").describe_clusters(clusters=[stack["Cluster"]], include=["SETTINGS"])["clusters"][0]
        self.assertEqual(cluster["settings"], [{"name": "containerInsights", "value": "enabled"}])

    def test_none_of_them_unless_asked_for(self):
        stack = self.stack
        self.assertEqual(client("ec2").describe_vpc_endpoints()["VpcEndpoints"], [])
        self.assertNotIn("DatabaseIngress", stack)


class OptionsTest(Deployed):
    """Stacks with one thing or another given."""

    def setUp(self):
        self.mock = mock_aws()
        self.mock.start()
        self.addCleanup(self.mock.stop)

    def test_rights_for_keys_of_ones_own(self):
        stack = deploy(
            SourceKmsKeyArn=KEY + "source", DestinationKmsKeyArn=KEY + "destination", SecretsKmsKeyArn=KEY + "secrets"
        )
        kms = {right for right in rights(statements(stack["ConsumerTaskRole"])) if right[0].startswith("kms:")}
        words = [
            ("arn:aws:kms:SOURCE_REGION:ACCOUNT:key/SOURCE_KEY", KEY + "source"),
            ("arn:aws:kms:REGION:ACCOUNT:key/DESTINATION_KEY", KEY + "destination"),
        ]
        # The queue is encrypted with a key of SQS's own, which asks for no right.
        expected = {right for right in documented("consumer-kms.json", words) if "QUEUE_KEY" not in right[1]}
        self.assertEqual(kms, expected)
        for role in ("FeederExecutionRole", "ConsumerExecutionRole"):
            self.assertIn(("kms:Decrypt", KEY + "secrets"), rights(statements(stack[role])))

    def test_the_database_by_iam(self):
        stack = deploy(DatabaseResourceId="db-ABC123")
        for program in ("Feeder", "Consumer"):
            self.assertEqual(self.environment(stack[f"{program}Task"])["DATABASE_AUTH"], "iam")
            container = self.task(stack[f"{program}Task"])["containerDefinitions"][0]
            self.assertEqual([secret["name"] for secret in container["secrets"]], ["PGUSER"])
            granted = rights(statements(stack[f"{program}TaskRole"]))
            (resource,) = (right[1] for right in granted if right[0] == "rds-db:connect")
            self.assertRegex(resource, r":rds-db:eu-central-1:\d+:dbuser:db-ABC123/.*" + program.lower())

    def test_key_prefixes_that_are_not_the_paths(self):
        stack = deploy(SourceKeyPrefix="", DestinationKeyPrefix="pictures/", OldPrefix="https://old.example/")
        words = self.words(self.queue(stack["Queue"]), source="", destination="pictures/")
        expected = documented("consumer.json", words)
        self.assertEqual(rights(statements(stack["ConsumerTaskRole"])), expected)
        environment = self.environment(stack["FeederTask"])
        self.assertEqual(environment["SOURCE_KEY_PREFIX"], "")
        self.assertEqual(environment["DESTINATION_KEY_PREFIX"], "pictures/")

    def test_copies_with_an_acl(self):
        stack = deploy(CopyAcl="bucket-owner-full-control")
        self.assertEqual(self.environment(stack["FeederTask"])["COPY_ACL"], "bucket-owner-full-control")
        words = self.words(self.queue(stack["Queue"]))
        expected = documented("consumer.json", words) | documented("copy-acl.json", words)
        self.assertEqual(rights(statements(stack["ConsumerTaskRole"])), expected)

    def test_settings_that_the_template_lacks_come_from_a_file(self):
        files = {program: f"arn:aws:s3:::settings-bucket/brigade/{program.lower()}.env" for program in ("Feeder", "Consumer")}
        stack = deploy(FeederEnvironmentFile=files["Feeder"], ConsumerEnvironmentFile=files["Consumer"])
        for program, file in files.items():
            container = self.task(stack[f"{program}Task"])["containerDefinitions"][0]
            self.assertEqual(container["environmentFiles"], [{"type": "s3", "value": file}])
            granted = {right for right in rights(statements(stack[f"{program}ExecutionRole"])) if right[0].startswith("s3:")}
            self.assertEqual(granted, {("s3:GetObject", file), ("s3:GetBucketLocation", "arn:aws:s3:::settings-bucket")})
        self.mock.reset()
        stack = deploy()
        for program in files:
            self.assertFalse(self.task(stack[f"{program}Task"])["containerDefinitions"][0].get("environmentFiles"))
            self.assertFalse([right for right in rights(statements(stack[f"{program}ExecutionRole"])) if right[0].startswith("s3:")])

    def test_the_feeder_as_a_task(self):
        stack = deploy(FeederMode="task")
        self.assertNotIn("command", {key for key, value in self.task(stack["FeederTask"])["containerDefinitions"][0].items() if value})
        self.assertEqual([service["serviceName"].split("-")[1] for service in self.services(stack)], ["ConsumerService"])
        self.assertNotIn("UnhealthyFeeder", self.alarms())
        outputs = client("cloudformation").describe_stacks(StackName=STACK)["Stacks"][0]["Outputs"]
        command = {output["OutputKey"]: output["OutputValue"] for output in outputs}["RunFeeder"]
        self.assertIn(stack["FeederTask"], command)
        self.assertIn(stack["TaskSecurityGroup"], command)

    def test_traces(self):
        secret = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:otlp"
        stack = deploy(OtlpEndpoint="http://collector:4318", OtlpHeadersSecretArn=secret, TracesSamplerArg="0.1")
        for program in ("Feeder", "Consumer"):
            self.assertEqual(self.environment(stack[f"{program}Task"])["OTEL_EXPORTER_OTLP_ENDPOINT"], "http://collector:4318")
            secrets = self.task(stack[f"{program}Task"])["containerDefinitions"][0]["secrets"]
            self.assertIn({"name": "OTEL_EXPORTER_OTLP_HEADERS", "valueFrom": secret}, secrets)
            self.assertIn(("secretsmanager:GetSecretValue", secret), rights(statements(stack[f"{program}ExecutionRole"])))
        # Which traces are exported the feeder decides.
        feeder = self.environment(stack["FeederTask"])
        self.assertEqual((feeder["OTEL_TRACES_SAMPLER"], feeder["OTEL_TRACES_SAMPLER_ARG"]), ("parentbased_traceidratio", "0.1"))

    def test_the_backlog_keeps_the_most_consumers_busy(self):
        text = TEMPLATE.read_text()
        rows = re.findall(r'"(\d+)": \{ Max: (\d+), (.*) \}', text)
        self.assertEqual([row[0] for row in rows], re.findall(r"\d+", re.search(r'DatabaseConnections:\n.*\n    AllowedValues: (.*)', text).group(1)))
        allowed = re.findall(r"\d+", re.search(r"MaxConcurrency:\n.*\n    AllowedValues: (.*)", text).group(1))
        holds = dict(re.findall(r'"(\d+)": \{ Messages: (\d+) \}', text))
        self.assertEqual(list(holds), allowed)
        most_waiting = int(re.search(r"BacklogPerConsumer:\n(?:.*\n)*?    MaxValue: (\d+)", text).group(1))
        for concurrency, held in holds.items():
            # As consumer/src/receive.rs has it.
            self.assertEqual(int(held), int(concurrency) + min(int(concurrency), 200) + 200)
        for connections, most, backlogs in rows:
            backlogs = dict(re.findall(r'"(\d+)": (\d+)', backlogs))
            self.assertEqual(list(backlogs), allowed)
            for concurrency, backlog in backlogs.items():
                self.assertEqual(int(backlog), (most_waiting + int(holds[concurrency])) * int(most), connections)
        for given, backlog in (({}, "8280"), ({"DatabaseConnections": "304", "MaxConcurrency": "256"}, "115600"), ({"MaxBacklog": "5000"}, "5000")):
            self.mock.reset()
            self.assertEqual(self.environment(deploy(**given)["FeederTask"])["MAX_BACKLOG"], backlog)

    def test_there_are_never_more_consumers_than_connections(self):
        for connections, most in (("7", 1), ("34", 10), ("304", 100)):
            with self.subTest(connections):
                self.mock.reset()
                stack = deploy(DatabaseConnections=connections)
                ((target,), _) = self.scaling()
                self.assertEqual((target["MinCapacity"], target["MaxCapacity"]), (0, most))
                self.assertLessEqual(3 * most + 4, int(connections))
                consumer = self.consumer(stack)
                self.assertTrue(target["ResourceId"].endswith(consumer["serviceName"]))

    def test_consumers_follow_what_each_has_to_do(self):
        deploy(BacklogPerConsumer="300", MaxConcurrency="256")
        _, policies = self.scaling()
        policy = policies["load-per-consumer"]["TargetTrackingScalingPolicyConfiguration"]
        self.assertEqual(policy["TargetValue"], 100)
        metrics = {metric["Id"]: metric for metric in policy["CustomizedMetricSpecification"]["Metrics"]}
        self.assertEqual([name for name, metric in metrics.items() if metric.get("ReturnData")], ["load"])
        self.assertEqual(metrics["full"]["Expression"], "100 * (visible + inflight) / (running * (300 + 656))")
        self.assertEqual(metrics["load"]["Expression"], "IF(full > 100 AND 2 * FILL(held, 0) >= running, 100, full)")
        for name, metric in (("visible", "Visible"), ("inflight", "NotVisible")):
            self.assertEqual(metrics[name]["MetricStat"]["Metric"]["MetricName"], f"ApproximateNumberOfMessages{metric}")
        self.assertEqual(metrics["running"]["MetricStat"]["Metric"]["Namespace"], "ECS/ContainerInsights")

    def test_one_consumer_may_always_stay(self):
        deploy(MinConsumers="1")
        ((target,), policies) = self.scaling()
        self.assertEqual(target["MinCapacity"], 1)
        self.assertEqual(set(policies), {"load-per-consumer"})
        self.assertNotIn("NothingToDo", self.alarms())

    def test_people_are_alarmed(self):
        topic = f"arn:aws:sns:{REGION}:123456789012:operators"
        stack = deploy(AlarmTopicArn=topic)
        alarms = self.alarms()
        for alarm in ("DeadLetters", "OldMessages", "UnhealthyConsumers"):
            self.assertEqual(alarms[alarm]["AlarmActions"], [topic])
        dead = self.queue(stack["DeadLetterQueue"])["QueueArn"].split(":")[-1]
        self.assertEqual(alarms["DeadLetters"]["Dimensions"], [{"Name": "QueueName", "Value": dead}])
        self.assertEqual(alarms["OldMessages"]["MetricName"], "ApproximateAgeOfOldestMessage")

    def test_consumers_on_spot(self):
        stack = deploy(ConsumerCapacity="FARGATE_SPOT", Architecture="X86_64")
        consumer = self.consumer(stack)
        self.assertEqual(consumer["capacityProviderStrategy"][0]["capacityProvider"], "FARGATE_SPOT")
        self.assertEqual(self.task(stack["ConsumerTask"])["runtimePlatform"]["cpuArchitecture"], "X86_64")

    def test_endpoints_and_the_databases_door(self):
        ec2 = client("ec2")

        def group(vpc):
            return ec2.create_security_group(GroupName="db", Description="db", VpcId=vpc)["GroupId"]

        def table(vpc):
            return ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]

        stack = deploy(VpcEndpoints="create", RouteTableIds=table, DatabaseSecurityGroupId=group)
        endpoints = {one["ServiceName"].split(".", 3)[3] for one in ec2.describe_vpc_endpoints()["VpcEndpoints"]}
        self.assertEqual(endpoints, {"s3", "sqs", "ecr.api", "ecr.dkr", "logs", "secretsmanager"})
        database = ec2.describe_security_groups(GroupNames=["db"])["SecurityGroups"][0]["IpPermissions"]
        self.assertEqual([(door["FromPort"], door["UserIdGroupPairs"][0]["GroupId"]) for door in database], [(5432, stack["TaskSecurityGroup"])])
        tasks = ec2.describe_security_groups(GroupIds=[stack["TaskSecurityGroup"]])["SecurityGroups"][0]
        self.assertEqual(tasks["IpPermissions"], [])


if __name__ == "__main__":
    unittest.main()
