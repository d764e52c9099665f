"""Renders an overlay of infra/k8s, and holds objects against schemas.

`kubectl kustomize` renders. Where kubectl is not installed, the rendering that it left in golden/ is read, which bears
the hash of the files that it was made from: one that is out of date is refused.

Kubernetes' own kinds are held against the models of the `kubernetes` package, which are generated from Kubernetes'
OpenAPI specification: unknown fields, wrong types and missing fields are found; admission rules are not. Custom
resources are held against infra/validation/custom-resources.json.
"""

import datetime
import functools
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes.client
import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

K8S = Path(__file__).resolve().parents[2] / "infra" / "k8s"
GOLDEN = Path(__file__).parent / "golden"
CUSTOM = json.loads((K8S.parent / "validation" / "custom-resources.json").read_text())
SCALARS = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": (str, datetime.datetime)}
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?")
QUANTITIES = ("limits", "requests", "hard", "default", "defaultRequest")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def render(overlay):
    """The overlay's objects. Fails where there is no kubectl and the recorded rendering is out of date."""
    return rendered(overlay) if shutil.which("kubectl") else recorded(overlay)


def rendered(overlay):
    text = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "overlays" / overlay)], check=True, capture_output=True, text=True
    ).stdout
    return [item for item in yaml.load_all(text, LOADER) if item]


def recorded(overlay):
    """The rendering in golden/. Fails if infra/k8s has changed since."""
    text = (GOLDEN / f"k8s-{overlay}.yaml").read_text()
    assert text.startswith(heading()), (
        "infra/k8s has changed since it was rendered: with kubectl installed, give "
        "KIWI_WRITE_GOLDEN=1 pytest tests/pipelines/test_kubernetes_manifests.py"
    )
    return [item for item in yaml.load_all(text, LOADER) if item]


def record(overlay):
    text = yaml.safe_dump_all(rendered(overlay), sort_keys=True, width=120)
    (GOLDEN / f"k8s-{overlay}.yaml").write_text(heading() + text)


def heading():
    """A comment with the hash of every file that is rendered."""
    files = sorted(path for path in K8S.rglob("*") if path.is_file())
    whole = hashlib.sha256(b"".join(str(path.relative_to(K8S)).encode() + path.read_bytes() for path in files))
    return f"# Rendered by `kubectl kustomize` from files with the hash {whole.hexdigest()}\n"


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
    errors = WithModels(whole).iter_errors(body)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]


def _of_a_model(validator, model, instance, schema):
    """The keyword "x-kubernetes-model": the value is one of Kubernetes' own kinds."""
    for said in _model(instance, model, model):
        yield ValidationError(said)


WithModels = validators.extend(Draft202012Validator, {"x-kubernetes-model": _of_a_model})


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
    fields = {wire: model.openapi_types[name] for name, wire in model.attribute_map.items()}
    said = [f"{where}.{key}: unknown field" for key in value if key not in fields]
    said += [f"{where}.{key}: missing" for key in sorted(required(kind)) if value.get(key) is None]
    for key in value.keys() & fields.keys():
        said += _model(value[key], fields[key], f"{where}.{key}")
    return said


@functools.cache
def required(kind):
    """The fields that must be there: those that an object of the generated model does not let be None."""
    model = getattr(kubernetes.client, kind)
    unchecked = kubernetes.client.Configuration()
    unchecked.client_side_validation = False
    blank = model(local_vars_configuration=unchecked)
    blank.local_vars_configuration = kubernetes.client.Configuration()
    return frozenset(wire for name, wire in model.attribute_map.items() if not _may_be_none(blank, name))


def _may_be_none(blank, name):
    try:
        setattr(blank, name, None)
    except ValueError:
        return False
    return True
