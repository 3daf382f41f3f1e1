"""`fd doctor`: devices, plug-ins with the verdict of each loading step, versions, environment."""

from __future__ import annotations

import argparse
import json
import os
import platform as machine
import sys
from typing import TYPE_CHECKING, Any

from fd_core.cli.why import plugin_json, reason_text

if TYPE_CHECKING:
    from fd_core.api.verdict import Verdict
    from fd_core.host.facts import Opened
    from fd_core.host.plugins import Plugin, PluginHost
    from fd_core.host.select import PlatformFact

Json = dict[str, Any]
#: Reasons that are no fault: nothing is attached, or the user said so.
HARMLESS = ("NO_DEVICE", "DISABLED")
DEPENDENCIES = ("apache-tvm-ffi", "numpy", "ml_dtypes", "pluggy", "pydantic", "importlib-metadata")
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """0 if the platform asked for can be used and no plug-in is broken, else 1."""
    report = examine()
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if args.json else text(report))
    return 0 if report["healthy"] else 1


def examine() -> Json:
    from fd_core.host.errors import PlatformError
    from fd_core.host.facts import open_device
    from fd_core.host.plugins import plugin_host
    from fd_core.host.select import ranked

    host = plugin_host()
    report: Json = {**versions(), "environment": environment()}
    report["platforms"] = [fact_json(fact) for fact in ranked(host.facts())]
    try:
        report["device"] = device_json(host, open_device(host))
        report["error"] = ""
    except PlatformError as error:
        report["device"], report["error"] = None, str(error)
    report["plugins"] = [plugin_report(host, plugin) for plugin in host.plugins]
    report["healthy"] = not report["error"] and not any(p["broken"] for p in report["plugins"])
    return report


def versions() -> Json:
    import importlib_metadata

    from fd_core import __version__
    from fd_core.api.version import PLUGIN_API

    found = {}
    for name in DEPENDENCIES:
        try:
            found[name] = importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {
        "fd_core": __version__,
        "plugin_api": list(PLUGIN_API),
        "python": f"{machine.python_version()} ({sys.executable})",
        "system": f"{machine.system()} {machine.release()} {machine.machine()}",
        "dependencies": found,
    }


def environment() -> Json:
    from fd_core.environ import registry

    declared = [v.name for v in registry.variables() if os.environ.get(v.name)]
    shown = {name: "***" if is_secret(name) else os.environ[name] for name in declared}
    return {"set": shown, "unknown": registry.unknown()}


def is_secret(name: str) -> bool:
    return any(word in name.split("_") for word in SECRET_WORDS)


def fact_json(fact: PlatformFact) -> Json:
    from fd_core.host.jsonable import from_verdict

    names = ("name", "provider", "priority", "devices")
    return {**{n: getattr(fact, n) for n in names}, "reasons": from_verdict(fact.verdict)}


def device_json(host: PluginHost, opened: Opened) -> Json:
    from fd_core.host.jsonable import from_device

    served = {kernel.op for kernel in opened.kernels}
    checks = [check_json(p, what, verdict) for p, what, verdict in host.checks(opened.info)]
    return {
        "platform": opened.name,
        **from_device(opened.info),
        "kernels": len(served),
        "attention_backends": [cls.name for cls in host.attention_backends(opened.info)],
        "quant_methods": sorted(host.quant_methods(opened.info)),
        "checks": checks,
    }


def check_json(plugin: Plugin, what: str, verdict: Verdict) -> Json:
    from fd_core.host.jsonable import from_verdict

    return {"plugin": plugin.found.name, "what": what, "reasons": from_verdict(verdict)}


def plugin_report(host: PluginHost, plugin: Plugin) -> Json:
    """With a probe in a process of its own for plug-ins that were switched off."""
    row = plugin_json(plugin)
    codes = {reason["code"] for step in row["steps"] for reason in step["reasons"]}
    row["stamp"] = plugin.manifest.stamp if plugin.manifest else {}
    row["deprecations"] = plugin.deprecations
    row["remarks"] = plugin.remarks
    row["broken"] = not codes <= set(HARMLESS)
    if "DISABLED" in codes:
        row["probe_when_enabled"] = host.probe_apart(plugin).json()
    return row


def text(report: Json) -> str:
    lines = [f"fd-core {report['fd_core']}, plug-in API {'.'.join(map(str, report['plugin_api']))}"]
    lines += [f"Python {report['python']}", report["system"]]
    lines.append("  ".join(f"{name} {version}" for name, version in report["dependencies"].items()))
    lines += ["", "Plug-ins", *_plugins(report["plugins"])]
    lines += ["", "Platforms", *_platforms(report["platforms"])]
    lines += ["", "In use", *(_device(report["device"]) if report["device"] else [f"  {report['error']}"])]
    lines += ["", "Environment", *_environment(report["environment"])]
    lines += ["", "everything is in order" if report["healthy"] else "there are problems, see above"]
    return "\n".join(lines) + "\n"


def _plugins(rows: list[Json]) -> list[str]:
    lines = []
    for row in rows:
        state = "loaded" if row["loaded"] else "BROKEN" if row["broken"] else "not used"
        steps = ", ".join(f"{s['step']} {s['milliseconds']:.0f} ms" for s in row["steps"] if s["ok"])
        lines.append(f"  {row['name']} ({row['distribution']} {row['version']}): {state} [{steps}]")
        if row["stamp"]:
            lines.append("      " + ", ".join(f"{k} {_plain(v)}" for k, v in row["stamp"].items()))
        lines += _reasons(reason for step in row["steps"] for reason in step["reasons"])
        lines += [f"      deprecated: {message}" for message in row["deprecations"]]
        lines += [f"      left out: {message}" for message in row["remarks"]]
        if "probe_when_enabled" in row:
            lines += _probe(row["probe_when_enabled"])
    return lines or ["  none installed; for this machine's processor: pip install fd-cpu"]


def _probe(probe: Json) -> list[str]:
    found = [f"{p['name']}: {len(p['devices'])} devices" for p in probe["platforms"]]
    reasons = [r for p in probe["platforms"] for r in p["reasons"]] + probe["reasons"]
    return [f"      probed apart: {', '.join(found) or 'no platforms'}", *_reasons(reasons)]


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _reasons(reasons: Any) -> list[str]:
    return [f"      {reason_text(reason)}" for reason in reasons]


def _platforms(rows: list[Json]) -> list[str]:
    lines = []
    for row in rows:
        state = "unusable" if row["reasons"] else f"{row['devices']} device(s)"
        priority = "unknown" if row["priority"] is None else row["priority"]
        lines += [f"  {row['name']} ({row['provider']}), priority {priority}: {state}"]
    return lines


def _device(row: Json) -> list[str]:
    memory = f"{row['memory'] / 2**30:.1f} GiB"
    lines = [
        f"  {row['platform']} {row['device']}: {row['name']}, {row['arch']}, {memory}, {row['units']} units"
    ]
    lines.append(f"  {row['kernels']} ops have a kernel; features {' '.join(row['features']) or 'none'}")
    lines += [f"  {name} {value}" for name, value in row["extra"].items()]
    lines.append(f"  attention {', '.join(row['attention_backends']) or 'none'}")
    lines.append(f"  quantisation {', '.join(row['quant_methods']) or 'none'}")
    for check in row["checks"]:
        lines.append(f"  {check['plugin']}, {check['what']}: {'no' if check['reasons'] else 'ok'}")
        lines += _reasons(check["reasons"])
    return lines


def _environment(row: Json) -> list[str]:
    lines = [f"  {name}={value}" for name, value in row["set"].items()]
    lines += [f"  {message}" for message in row["unknown"]]
    return lines or ["  nothing set"]
