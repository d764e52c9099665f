"""Kills trainings at random moments and lets them go on: `python killed_trainings.py FOLDER KILLS SEED`.

Every training is a fork of a process that has imported everything, built the editor and started no thread. Two of
three are ended by SIGKILL, the third by SIGTERM. Prints a JSON object: kills, the steps that were resumed from, the
exit codes of SIGTERM, and the losses of the uninterrupted training and of the others.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from kiwi.configuration import ModelSettings
from kiwi.training.preemption import Preempted
from kiwi.training.start import initial_model

sys.path.insert(0, str(Path(__file__).parent))
from training_program import trained, write_cache


def started(folder: Path, model: object) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            losses = trained(folder, {}, model)  # type: ignore[arg-type]
            (folder / "losses.json").write_text(json.dumps(losses))
            status = 0
        except Preempted as error:
            status = error.exit_code
        finally:
            os._exit(status)
    return child


def newest(folder: Path) -> int:
    found = [int(path.parent.name[5:]) for path in folder.glob("stage/checkpoints/*/index.json")]
    return max(found, default=0)


def main(folder: Path, kills: int, seed: int) -> None:
    random.seed(seed)
    model = initial_model(ModelSettings())
    write_cache(folder / "whole" / "cache")
    began = time.monotonic()
    assert os.waitpid(started(folder / "whole", model), 0)[1] == 0
    longest = time.monotonic() - began
    done, codes, resumed, losses = 0, [], [], []
    while done < kills:
        own = folder / f"training-{len(losses)}"
        shutil.copytree(folder / "whole" / "cache", own / "cache")
        while True:
            resumed.append(newest(own))
            child = started(own, model)
            time.sleep(random.uniform(0.0, longest) if done < kills else 0.0)
            ended, status = os.waitpid(child, os.WNOHANG if done < kills else 0)
            if ended != child:
                how = signal.SIGTERM if done % 3 == 2 else signal.SIGKILL
                os.kill(child, how)
                status = os.waitpid(child, 0)[1]
                done += 1
                if how == signal.SIGTERM and os.WIFEXITED(status):
                    codes.append(os.WEXITSTATUS(status))
                if status != 0:
                    continue
            assert status == 0, f"a resumed training failed with status {status}"
            break
        losses.append(json.loads((own / "losses.json").read_text()))
    whole = json.loads((folder / "whole" / "losses.json").read_text())
    print(json.dumps({"kills": done, "resumed": resumed, "codes": codes, "whole": whole, "trained": losses}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
