"""Renders an overlay of infra/k8s, and holds objects against schemas.

Kubernetes' own kinds are held against the models of the `kubernetes` package, which are generated from Kubernetes'
OpenAPI specification: unknown fields, wrong types and missing fields are found; admission rules are not. Custom
resources are held against infra/validation/custom-resources.json.
"""

import datetime
import json
import re
import subprocess
from pathlib import Path

import kubernetes.client
import yaml
from jsonschema import Draft202012Validator

K8S = Path(__file__).resolve().parents[2] / "infra" / "k8s"
CUSTOM = json.loads((K8S.parent / "validation" / "custom-resources.json").read_text())
SCALARS = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": (str, datetime.datetime)}
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?")
QUANTITIES = ("limits", "requests", "hard", "default", "defaultRequest")


def render(overlay):
    text = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "overlays" / overlay)], check=True, capture_output=True, text=True
    ).stdout
    return [item for item in yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if item]


def faults(item):
    """All that is wrong with one object, in words."""
    where = f"{item['kind']}/{item['metadata']['name']}"
    custom = CUSTOM.get(f"{item['apiVersion']}/{item['kind']}")
    if custom is not None:
        body = {key: value for key, value in item.items() if key not in ("apiVersion", "kind", "metadata")}
        said = _custom(body, custom) + _custom(item["metadata"], {"$ref": "#/$defs/metadata"})
        return [f"{where}: {text}" for text in said]
    group, _, version = item["apiVersion"].rpartition("/")
    prefix = "" if group in ("", "apps", "policy") or group.endswith(".k8s.io") else group
    model = f"{prefix}{version.capitalize()}{item['kind']}"
    if not hasattr(kubernetes.client, model):
        return [f"{where}: no schema for {item['apiVersion']}"]
    return _model(item, model, where)


def _custom(body, schema):
    whole = {**schema, "$defs": CUSTOM["$defs"]}
    errors = Draft202012Validator(whole).iter_errors(body)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]


def _model(value, kind, where):
    if value is None or kind == "object":
        return []
    if kind in SCALARS:
        fits = isinstance(value, SCALARS[kind]) and not (kind == "int" and isinstance(value, bool))
        return [] if fits else [f"{where}: {value!r} is no {kind}"]
    if inner := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        return [said for number, item in enumerate(value) for said in _model(item, inner[1], f"{where}[{number}]")]
    if not isinstance(value, dict):
        return [f"{where}: no object"]
    if inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
        wrong = [f"{where}.{key}: {item!r} is no amount" for key, item in value.items()
                 if where.rpartition(".")[2] in QUANTITIES and not QUANTITY.fullmatch(str(item))]  # fmt: skip
        return wrong + [said for key, item in value.items() for said in _model(item, inner[1], f"{where}.{key}")]
    model = getattr(kubernetes.client, kind)
    fields = {wire: (name, model.openapi_types[name]) for name, wire in model.attribute_map.items()}
    said = [f"{where}.{key}: unknown field" for key in value if key not in fields]
    for key in value.keys() & fields.keys():
        said += _model(value[key], fields[key][1], f"{where}.{key}")
    try:  # the generated constructor knows which fields are required
        model(**{name: value.get(wire) for wire, (name, _) in fields.items()})
    except ValueError as error:
        said.append(f"{where}: {error}")
    except AttributeError:
        pass  # a constructor that looks into a field that is still plain data
    return said
