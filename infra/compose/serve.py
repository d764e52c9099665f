"""MLflow's server of infra/compose.yaml: makes the bucket for artifacts where there is none, then serves."""

import os
import sys
import time

BUCKET = "mlflow"
PORT = os.environ.get("KIWI_SERVE_PORT", "5000")
HOSTS = "localhost:*,127.0.0.1:*,mlflow:*"
PATIENCE = 120.0


def make_bucket() -> None:
    """Waits for the S3 service, which may start after us. Raises botocore's error once patience is over."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client, until = boto3.client("s3"), time.monotonic() + PATIENCE
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > until:
                raise
            print(f"waiting for S3: {error}", file=sys.stderr, flush=True)
            time.sleep(2.0)


if __name__ == "__main__":
    make_bucket()
    # In a container of its own, whose port compose publishes; the program takes this one's place, without a shell.
    server = ["mlflow", "server", "--host", "0.0.0.0", "--port", PORT, "--workers", "2", "--serve-artifacts"]  # nosec B104
    more = ["--artifacts-destination", f"s3://{BUCKET}/", "--allowed-hosts", HOSTS]
    os.execvp("mlflow", [*server, *more])  # nosec B606
