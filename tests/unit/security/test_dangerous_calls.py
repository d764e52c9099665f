"""What the code never does: unpickle, run text, trust a remote's code, skip a certificate, unpack blindly."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = [path for folder in ("kiwi", "components", "pipelines", "infra") for path in (ROOT / folder).rglob("*.py")]
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}


def said(node: ast.expr | None) -> str:
    return "" if node is None else ast.unparse(node)


def dangers(tree: ast.AST) -> Iterator[str]:
    """What of a file is dangerous, in words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] in PICKLES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            yield f"imports {node.module}"
        elif isinstance(node, ast.Call):
            yield from _calls(said(node.func), {word.arg: said(word.value) for word in node.keywords if word.arg}, node)


def _calls(name: str, words: dict[str, str], node: ast.Call) -> Iterator[str]:
    last = name.rpartition(".")[2]
    rules: dict[str, bool] = {
        "runs text": name in ("eval", "exec", "os.system", "os.popen"),
        "runs a shell": words.get("shell", "False") != "False",
        "unpickles tensors": name == "torch.load" and words.get("weights_only") != "True",
        "unpickles arrays": words.get("allow_pickle", "False") != "False",
        "builds objects from YAML": name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load")
        and "SafeLoader" not in words.get("Loader", ""),
        "trusts a remote's code": words.get("trust_remote_code", "False") != "False",
        "skips a certificate": words.get("verify") == "False" or "_create_unverified_context" in name,
        "unpacks an archive blindly": last == "extractall" or name == "shutil.unpack_archive",
        "guesses a temporary name": name == "tempfile.mktemp",
        "fetches weights without a revision": last == "from_pretrained"
        and name.split(".")[0] not in ("KiwiEditPipeline", "cls")
        and not ({"revision", "local_files_only"} & set(words) or any(word.arg is None for word in node.keywords)),
    }
    yield from (f"{what} ({name}, line {node.lineno})" for what, found in rules.items() if found)


def test_no_file_does_anything_dangerous() -> None:
    assert len(SHIPPED) > 200
    found = {str(path.relative_to(ROOT)): list(dangers(ast.parse(path.read_text()))) for path in SHIPPED}
    assert {name: said for name, said in found.items() if said} == {}


def test_no_path_of_a_shared_temporary_folder_is_written_down() -> None:
    """In the library; profiles and images name the mount points of containers, which share their /tmp with nobody."""
    found = []
    for path in (ROOT / "kiwi").rglob("*.py"):
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        found += [(path.name, text) for text in texts if str(text).startswith(("/tmp", "/var/tmp"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from joblib import load", "eval(x)", "subprocess.run(x, shell=True)", "torch.load(x)",
        "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)", "yaml.load(x)",
        "yaml.load(x, Loader=yaml.Loader)", "A.from_pretrained(x)", "A.from_pretrained(x, trust_remote_code=True)",
        "requests.get(x, verify=False)", "tarfile.open(x).extractall(y)", "tempfile.mktemp()",
    ],
)  # fmt: skip
def test_each_danger_is_found_where_there_is_one(text: str) -> None:
    assert list(dangers(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(x, weights_only=True)", "yaml.safe_load(x)", "yaml.load(x, Loader=yaml.SafeLoader)",
        "A.from_pretrained(x, revision=r)", "A.from_pretrained(x, local_files_only=True)", "subprocess.run([x])",
    ],
)  # fmt: skip
def test_what_is_safe_is_left_alone(text: str) -> None:
    assert list(dangers(ast.parse(text))) == []
