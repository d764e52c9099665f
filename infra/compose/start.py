"""Starts and stops the services of infra/compose.yaml, and prints what to export.

    python infra/compose/start.py [--folder DIR] [--stop]

Passwords are made once, in DIR/secrets, for you alone to read; data lies beside them and stays when services stop.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "compose.yaml"
STATE = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kiwi" / "services"


def make_secrets(folder: Path) -> None:
    """Writes those that are missing; a second start finds the first one's, since the data was made with them."""
    for name in ("secrets", "postgres", "s3"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    place = folder / "secrets"
    password = _kept(place / "postgres-password", secrets.token_hex(16))
    key, secret = _kept(place / "s3-key", "kiwi"), _kept(place / "s3-secret", secrets.token_hex(16))
    _kept(place / "pgpass", f"*:*:*:kiwi:{password}")
    _kept(place / "aws-credentials", f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}")


def owner(folder: Path) -> tuple[int, int]:
    """The user and group of the services: the caller's; 1000 for root, as PostgreSQL refuses to be root's."""
    if os.getuid():
        return os.getuid(), os.getgid()
    for path in [folder, folder / "postgres", folder / "s3", folder / "secrets", *(folder / "secrets").iterdir()]:
        os.chown(path, 1000, 1000)
    return 1000, 1000


def _kept(file: Path, text: str) -> str:
    if not file.exists():
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(text + "\n")
    return file.read_text().removesuffix("\n")


def compose() -> list[str]:
    """The program that reads compose files here."""
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    if found := shutil.which("docker-compose"):
        return [found]
    sys.exit("services: no `docker compose` here: install Docker's compose plugin")


def client_image() -> str:
    if named := os.environ.get("KIWI_CLIENT_IMAGE"):
        return named
    from components.image import source_tag

    return f"kiwi-client:{source_tag()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=STATE, help=f"where data and passwords lie; default: {STATE}")
    parser.add_argument("--stop", action="store_true", help="stop them; data stays")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    variables = {**os.environ, "KIWI_IDS": "0:0", "KIWI_SERVICES": str(folder), "KIWI_CLIENT_IMAGE": "any"}
    command = [*compose(), "--project-name", "kiwi", "--file", str(FILE)]
    if arguments.stop:
        sys.exit(subprocess.run([*command, "down"], env=variables).returncode)
    image = client_image()
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode:
        sys.exit(f'services: the engine has no image {image}: make images IMAGES="--target client"')
    make_secrets(folder)
    variables |= {"KIWI_IDS": "{}:{}".format(*owner(folder)), "KIWI_CLIENT_IMAGE": image}
    done = subprocess.run([*command, "up", "--detach"], env=variables)
    if done.returncode:
        sys.exit(done.returncode)
    mlflow, s3 = os.environ.get("KIWI_MLFLOW_PORT", "5000"), os.environ.get("KIWI_S3_PORT", "9000")
    print(f"export MLFLOW_TRACKING_URI=http://127.0.0.1:{mlflow}")
    print(f"export AWS_ENDPOINT_URL=http://127.0.0.1:{s3} AWS_DEFAULT_REGION=us-east-1")
    print(f"export AWS_SHARED_CREDENTIALS_FILE={folder / 'secrets' / 'aws-credentials'}")


if __name__ == "__main__":
    main()
