"""Several processes under torchrun, with DDP and with FSDP2, on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from st3fx.commands.train import train_spec
from tests.models import write
from tests.training.runs import NET, folder_of, require_equal, rows, settings, state

ROOT = Path(__file__).parent.parent.parent

SCRIPT = """
    import sys
    from pathlib import Path
    from accelerate.state import PartialState
    from st3fx.cli import main
    from st3fx.commands.train import train_spec
    from st3fx.training import loop
    from tests.training.runs import CrashError, crash, resumed, settings

    # Three runs in one start: the group of processes has to outlive the first.
    destroy = PartialState.destroy_process_group
    PartialState.destroy_process_group = lambda self, group=None: None

    folder, kind, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    values = {"batch_size": size, "fsdp": kind == "fsdp", "epochs": 2, "checkpoint_every": 3}
    command = ["train", str(folder / "net.py"), "-o", str(folder / "whole"), "-b", str(size),
               "--epochs", "2", "--checkpoint-every", "3", "--log-interval", "2",
               "--bn-recalibrate", "2", "--json", "--fsdp" if kind == "fsdp" else "--no-fsdp"]
    main(command, standalone_mode=False)

    # In both processes: only the main one tells its reporter of steps.
    after = loop.stop_if_asked

    def stop(session):
        after(session)
        if session.step == 5:
            crash()

    parts = settings(folder, output_dir=str(folder / "parts"), **values)
    loop.stop_if_asked = stop
    try:
        train_spec(parts)
    except CrashError:
        pass
    else:
        raise AssertionError("it went on")
    loop.stop_if_asked = after
    resumed(parts)
    # A group that is left to the end of the interpreter aborts it now and then: see leave_group.
    destroy(PartialState())
"""


ELASTIC = """
    import os
    import signal
    import sys
    from accelerate.state import PartialState
    from st3fx.cli import main
    from st3fx.training import loop

    destroy = PartialState.destroy_process_group
    PartialState.destroy_process_group = lambda self, group=None: None

    folder, again = sys.argv[1], os.environ["TORCHELASTIC_RESTART_COUNT"]
    after = loop.stop_if_asked

    def stop(session):
        after(session)
        if again == "0" and session.step == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    loop.stop_if_asked = stop
    # The whole run comes second: it is the one that nobody interrupts.
    for name in ("parts", "whole"):
        main(["train", folder + "/net.py", "-o", folder + "/" + name, "-b", "400",
              "--epochs", "2", "--checkpoint-every", "3", "--log-interval", "2",
              "--bn-recalibrate", "2", "--auto-resume", "--json"], standalone_mode=False)
    destroy(PartialState())
"""


def launched(script: Path, count: int, *arguments: str, restarts: int = 0) -> str:
    """What a script says under torchrun, which has to end well."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        # Else a restarted process may find the address of one that has died in torchrun's store.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    result = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", f"{count}",
            "--max-restarts", f"{restarts}",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), *arguments,
        ],
        capture_output=True, text=True, check=False, env=environment, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_torchrun_goes_on_when_a_process_has_died(tmp_path: Path) -> None:
    """It starts the same line again, which finds the last checkpoint: the bits are the same."""
    write(tmp_path, "net.py", NET)
    launched(write(tmp_path, "script.py", ELASTIC), 2, str(tmp_path), restarts=1)
    whole = settings(tmp_path, output_dir=str(tmp_path / "whole"))
    parts = settings(tmp_path, output_dir=str(tmp_path / "parts"))
    a, b = state(whole), state(parts)
    for content in (a, b):
        assert content["processes"] == 2
        del content["settings"], content["log_bytes"], content["log_sha256"]
    require_equal(a, b)
    assert rows(whole) == rows(parts)
    folded = [folder_of(run).folded.read_bytes() for run in (whole, parts)]
    assert folded[0] == folded[1]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("ddp", 4), ("fsdp", 2)])
def test_processes_train_one_model(tmp_path: Path, kind: str, count: int) -> None:
    """Four add up gradients in an order that DDP chooses; it is the same after a resumption."""
    no_norm = NET.replace("self.drop(", "(").replace("self.norm(", "(")
    write(tmp_path, "net.py", no_norm.replace("self.norm = nn.BatchNorm2d(4)", ""))
    script = write(tmp_path, "script.py", SCRIPT)
    said = launched(script, count, str(tmp_path), kind, f"{800 // count}")
    assert json.loads(said)["steps"] == 10  # printed once, by the main process
    whole = settings(tmp_path, output_dir=str(tmp_path / "whole"))
    parts = settings(tmp_path, output_dir=str(tmp_path / "parts"))
    a, b = state(whole), state(parts)
    for content in (a, b):
        assert content["processes"] == len(content["ranks"]) == count
        assert content["settings"]["fsdp"] == (kind == "fsdp")
        del content["settings"], content["log_bytes"], content["log_sha256"]
    require_equal(a, b)
    assert rows(whole) == rows(parts)
    # One process with batches as large as all of theirs takes the same steps.
    alone = settings(tmp_path, batch_size=800, epochs=2, output_dir=str(tmp_path / "alone"))
    train_spec(alone)
    assert [row["step"] for row in rows(alone)] == [row["step"] for row in rows(whole)]
    for one, two in zip(rows(alone), rows(whole), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-2), (one, two)
        assert two["sparsity"] == pytest.approx(one["sparsity"], abs=1e-3)
    manifest = json.loads((folder_of(whole).bundle / "manifest.json").read_text())
    assert [site["name"] for site in manifest["plan"]["sites"]] == ["stem.weight", "head.weight"]
