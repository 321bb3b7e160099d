"""A local CloudFormation: moto's, with what moto leaves out of ECS, scaling and alarms.

Each kind of resource here is made by a call to its service's own API: botocore checks every property
against AWS's model of that call, and what the service kept is what the tests then look at.
"""

import json

import boto3
import moto.cloudformation.parsing  # noqa: F401  (moto's own models first: the last of a kind is taken)
from moto.core.common_models import CloudFormationModel

REGION = "eu-central-1"
# What was asked of the services, by the name of the resource: moto does not keep all of it.
asked = {}

CONVERSIONS = {"string": str, "integer": int, "long": int, "double": float, "float": float}


def client(service):
    return boto3.client(service, region_name=REGION)


def fitted(value, shape, where):
    """The value as the API takes it: its spelling of names, and the conversions CloudFormation makes."""
    if shape.type_name == "structure":
        members = {name.lower(): name for name in shape.members}
        unknown = [name for name in value if name.lower() not in members]
        assert not unknown, f"{where} has no {unknown}"
        given = {members[name.lower()]: inner for name, inner in value.items() if inner is not None}
        return {name: fitted(inner, shape.members[name], f"{where}.{name}") for name, inner in given.items()}
    if shape.type_name == "list":
        return [fitted(inner, shape.member, where) for inner in value if inner is not None]
    if shape.type_name == "map":
        return {name: str(inner) for name, inner in value.items()}
    return CONVERSIONS.get(shape.type_name, lambda same: same)(value)


class MadeByCall:
    """A resource that makes itself by one call of its service."""

    kind = service = call = ""
    renamed = {}

    def __init__(self, name, properties):
        self.name = name
        api = client(self.service)
        shape = api.meta.service_model.operation_model(api.meta.method_to_api_mapping[self.call]).input_shape
        properties = {self.renamed.get(key, key): value for key, value in properties.items()}
        asked[name] = fitted(self.request(properties), shape, self.kind)
        self.answer = getattr(api, self.call)(**asked[name])

    def request(self, properties):
        return properties

    @classmethod
    def cloudformation_type(cls):
        return cls.kind

    @staticmethod
    def cloudformation_name_type():
        return ""

    @classmethod
    def create_from_cloudformation_json(cls, resource_name, cloudformation_json, account_id, region_name, **_):
        return cls(resource_name, cloudformation_json["Properties"])

    @classmethod
    def update_from_cloudformation_json(cls, *_):
        raise NotImplementedError

    @classmethod
    def delete_from_cloudformation_json(cls, *_):
        raise NotImplementedError

    @classmethod
    def has_cfn_attr(cls, attr):
        return attr in ("Arn", "Name")

    def get_cfn_attribute(self, attribute_name):
        return {"Name": self.name}[attribute_name]

    @property
    def physical_resource_id(self):
        return self.name


# moto finds its models among the direct subclasses of CloudFormationModel.


class Role(MadeByCall, CloudFormationModel):
    kind, service, call = "AWS::IAM::Role", "iam", "create_role"

    def __init__(self, name, properties):
        properties = dict(properties)
        policies = properties.pop("Policies")
        super().__init__(name, properties)
        for policy in policies:
            document = dict(policy["PolicyDocument"])
            # What Ref: AWS::NoValue leaves out.
            document["Statement"] = [statement for statement in document["Statement"] if statement]
            client("iam").put_role_policy(
                RoleName=name, PolicyName=policy["PolicyName"], PolicyDocument=json.dumps(document)
            )

    def request(self, properties):
        document = json.dumps(properties["AssumeRolePolicyDocument"])
        return {"RoleName": self.name, **properties, "AssumeRolePolicyDocument": document}

    def get_cfn_attribute(self, attribute_name):
        return {"Arn": self.answer["Role"]["Arn"]}[attribute_name]


class Cluster(MadeByCall, CloudFormationModel):
    kind, service, call = "AWS::ECS::Cluster", "ecs", "create_cluster"
    renamed = {"ClusterSettings": "settings"}

    def request(self, properties):
        return {"clusterName": self.name, **properties}


class TaskDefinition(MadeByCall, CloudFormationModel):
    kind, service, call = "AWS::ECS::TaskDefinition", "ecs", "register_task_definition"

    @property
    def physical_resource_id(self):
        return self.answer["taskDefinition"]["taskDefinitionArn"]


class Service(MadeByCall, CloudFormationModel):
    kind, service, call = "AWS::ECS::Service", "ecs", "create_service"

    def request(self, properties):
        # CloudFormation starts one where nothing is said.
        return {"serviceName": self.name, "desiredCount": 1, **properties}

    @property
    def physical_resource_id(self):
        return self.answer["service"]["serviceArn"]


class ScalableTarget(MadeByCall, CloudFormationModel):
    kind, service, call = (
        "AWS::ApplicationAutoScaling::ScalableTarget",
        "application-autoscaling",
        "register_scalable_target",
    )

    def request(self, properties):
        target = [properties[name] for name in ("ResourceId", "ScalableDimension", "ServiceNamespace")]
        self.name = "|".join(target)
        return properties


class ScalingPolicy(MadeByCall, CloudFormationModel):
    kind, service, call = "AWS::ApplicationAutoScaling::ScalingPolicy", "application-autoscaling", "put_scaling_policy"

    def request(self, properties):
        properties = dict(properties)
        target = properties.pop("ScalingTargetId").split("|")
        return dict(zip(("ResourceId", "ScalableDimension", "ServiceNamespace"), target)) | properties

    @property
    def physical_resource_id(self):
        return self.answer["PolicyARN"]


class Alarm(MadeByCall, CloudFormationModel):
    kind, service, call = "AWS::CloudWatch::Alarm", "cloudwatch", "put_metric_alarm"

    def request(self, properties):
        return {"AlarmName": self.name, **properties}


class MetricFilter(MadeByCall, CloudFormationModel):
    kind, service, call = "AWS::Logs::MetricFilter", "logs", "put_metric_filter"

    def request(self, properties):
        return {"filterName": self.name, **properties}
