"""Looks at the dashboard as Grafana does, and at the paths that the containers are given."""

import json
import re
import unittest

import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.tests.settings import ROOT

HERE = ROOT / "deploy/observability"
COLUMNS = 24


def lost(before, after, where="dashboard"):
    """What of the first is not in the second."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [one for key, value in before.items() for one in lost(value, after.get(key), f"{where}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [one for number, pair in enumerate(zip(before, after)) for one in lost(*pair, f"{where}[{number}]")]
    return [] if before == after else [f"{where}: {before} is read as {after}"]


class DashboardTest(unittest.TestCase):
    def setUp(self):
        self.dashboard = json.loads((HERE / "grafana/dashboard.json").read_text())
        self.panels = self.dashboard["panels"]

    def test_grafana_knows_every_field(self):
        plugins.register_default_plugins()
        read = json.loads(JSONEncoder().encode(Dashboard.from_json(self.dashboard)))
        self.assertEqual(lost(self.dashboard, read), [])

    def test_panels_stand_beside_each_other(self):
        taken = {}
        for panel in self.panels:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], COLUMNS)
            for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
                self.assertEqual(taken.setdefault(cell, panel["id"]), panel["id"], cell)
        self.assertEqual(len({panel["id"] for panel in self.panels}), len(self.panels))

    def test_the_data_source_can_be_chosen(self):
        chosen = {f"${{{variable['name']}}}" for variable in self.dashboard["templating"]["list"]}
        used = {one["datasource"]["uid"] for panel in self.panels for one in (panel, *panel["targets"])}
        self.assertEqual(used, chosen)


class OverlayTest(unittest.TestCase):
    def test_what_is_mounted_is_there_and_where_it_is_looked_for(self):
        services = yaml.safe_load((HERE / "docker-compose.yml").read_text())["services"]
        mounted = {}
        for name in ("prometheus", "grafana"):
            for volume in services[name]["volumes"]:
                source, target, mode = volume.split(":")
                self.assertTrue((ROOT / source).exists(), volume)
                self.assertEqual(mode, "ro")
                mounted[target] = source
            for port in services[name]["ports"]:
                self.assertRegex(port, r"^127\.0\.0\.1:")
        provider = yaml.safe_load((HERE / "grafana/provisioning/dashboards/bucket-brigade.yml").read_text())
        (directory,) = [one["options"]["path"] for one in provider["providers"]]
        self.assertIn(f"{directory}/bucket-brigade.json", mounted)
        source = yaml.safe_load((HERE / "grafana/provisioning/datasources/prometheus.yml").read_text())
        host, port = re.match(r"http://(\w+):(\d+)", source["datasources"][0]["url"]).groups()
        self.assertTrue(services[host]["ports"][0].endswith(f":{port}"))


if __name__ == "__main__":
    unittest.main()
