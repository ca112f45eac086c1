"""Runs of several connected processes, for test_distributed.py: ``python tests/worlds JOB FOLDER``.

The job's result is FOLDER/result.json.

The processes are forks of this one, so that torch is imported once; torchrun's variables tell them who they are.
"""

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datamodules.loading.order import gather_in_input_order
from lit_models import DynamicNet
from lit_training.cli.parser import FitCLI

QUIET = "--accelerator cpu --strategy ddp --logger false --enable_checkpointing false --enable_progress_bar false"


def world(ranks: int, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` gives on each of the connected processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
            os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "TORCHELASTIC_RUN_ID": "tests"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 1
            try:
                torch.save(work(), f"rank{rank}.pt")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * ranks, codes
    return [torch.load(f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]


def command(ranks: int, arguments: str) -> FitCLI:
    return FitCLI([*arguments.split(), *QUIET.split(), "--devices", str(ranks)])


def evaluation() -> dict[str, Any]:
    """Loss, accuracy and confusion matrix, predictions in order, for each number of pictures and of processes."""

    def work(ranks: int, pictures: int) -> Any:
        # BatchNorm: its evaluation must not ask the other ranks.
        cli = command(ranks, f"--data.val_size {pictures} --model LitTransfer --data ShapesDataModule {NORMED}")
        cli.datamodule.eval_batch_size = 20  # type: ignore[attr-defined]  # so that 7 are for the first rank alone
        rows: list[torch.Tensor] = []

        def collect(outputs: Any, *_: Any) -> None:
            rows.append(torch.stack([outputs["target"], outputs["output"].argmax(-1)]))

        cli.model.on_validation_batch_end = collect
        metrics = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)[0]
        target, predicted = torch.cat(rows, 1)
        known = target >= 0
        confusion = torch.bincount(target[known] * 10 + predicted[known], minlength=100)
        answered = cli.trainer.predict(cli.model, cli.datamodule, weights_only=True)
        predictions = gather_in_input_order(cli.trainer, torch.cat(answered), cli.trainer.predict_dataloaders)  # type: ignore[arg-type]
        seen = {**metrics, "counted": cli.model.samples_evaluated, "mine": int(known.sum())}
        return seen, confusion, predictions.tolist()

    found = {}
    for pictures in (153, 7, 2):
        for ranks in (1, 2, 3):
            parts = world(ranks, partial(work, ranks, pictures))
            found[f"{pictures} on {ranks}"] = {
                "metrics": [part[0] for part in parts],
                "confusion": sum(part[1] for part in parts).tolist(),
                "predictions": [part[2] for part in parts],
            }
    return found


def sums() -> dict[str, Any]:
    """The loss that is a sum over what was evaluated, for each number of processes."""

    def work(ranks: int) -> float:
        cli = command(ranks, "--model LitMLP --data.in_features 50 --data.length 157 --model.hidden [20]")
        return cli.trainer.validate(cli.model, cli.datamodule, verbose=False)[0]["val_loss"]

    return {str(ranks): world(ranks, partial(work, ranks)) for ranks in (1, 2, 3)}


NORMED = "--model.backbone shufflenet_v2_x0_5 --model.weights none --model.freeze false"


def union() -> dict[str, Any]:
    """Weights after training on the same union batches, cut up in several ways."""

    def work(ranks: int, arguments: str) -> Any:
        cli = command(ranks, arguments)
        if isinstance(cli.model.net, DynamicNet):
            note_depths(cli.model.net)
        cli.trainer.fit(cli.model, cli.datamodule)
        weights = torch.cat([parameter.detach().flatten() for parameter in cli.model.parameters()])
        depths = getattr(cli.model.net, "depths", [])
        return weights, float(cli.trainer.callback_metrics["train_loss"]), depths

    rows = "--data.in_features 5 --data.out_features 2 --data.length 48 --data.steps 0 --data.target linear"
    models = {
        "LeNet": "--data.train_size 48 --data.val_size 8 --max_epochs 2 --model.lr 0.05",
        "linear net": f"--model LitMLP --model.hidden [] {rows} --max_epochs 4 --model.lr 0.01",
        "MLP": f"--model LitMLP --model.hidden [16,8] {rows} --max_epochs 4 --model.lr 0.002",
        "dynamic net": f"--model LitDynamic --model.hidden 16 {rows} --max_epochs 4 --model.lr 0.002",
    }
    found: dict[str, Any] = {}
    for name, arguments in models.items():
        found[name] = {}
        for ranks, size, accumulated in ((1, 12, 1), (2, 6, 1), (1, 4, 3), (2, 3, 2)):
            if name == "dynamic net" and accumulated > 1:
                continue  # each of the batches accumulated draws a depth of its own
            cut = f"{arguments} --data.batch_size {size} --accumulate_grad_batches {accumulated}"
            parts = world(ranks, partial(work, ranks, cut))
            assert all(torch.equal(parts[0][0], part[0]) for part in parts)
            assert all(parts[0][2] == part[2] for part in parts)
            found[name][f"{ranks} x {size} x {accumulated}"] = parts[0][0].tolist(), *parts[0][1:]
    return found


def note_depths(net: Any) -> None:
    """Have the network keep how often each training step used its middle layer."""
    net.depths = []

    def begin(module: Any, inputs: Any) -> None:
        if module.training:
            module.depths.append(0)

    def count(*_: Any) -> None:
        if net.training:
            net.depths[-1] += 1

    net.register_forward_pre_hook(begin)
    net.middle_linear.register_forward_hook(count)


def uneven() -> dict[str, Any]:
    """BatchNorm models on pictures that neither the ranks nor the batches divide."""

    def work(ranks: int) -> int:
        sizes = "--data.train_size 19 --data.val_size 7 --data.batch_size 4 --max_epochs 2"
        cli = command(ranks, f"--model LitTransfer --data ShapesDataModule {NORMED} {sizes}")
        cli.trainer.fit(cli.model, cli.datamodule)
        return cli.trainer.global_step

    return {str(ranks): world(ranks, partial(work, ranks)) for ranks in (2, 3)}


def nan() -> dict[str, Any]:
    """One rank's loss becomes NaN: all end with the same line."""

    def work() -> str:
        cli = command(2, "--data.train_size 40 --data.val_size 8 --max_epochs 1 --log_every_n_steps 2")
        step = cli.model.training_step
        spoilt = os.environ["RANK"] == "1"

        def training_step(batch: Any, batch_idx: int) -> torch.Tensor:
            return step(batch, batch_idx) * (torch.nan if spoilt and batch_idx == 1 else 1)

        cli.model.training_step = training_step
        try:
            cli.trainer.fit(cli.model, cli.datamodule)
        except ValueError as error:
            return str(error)
        return "no error"

    return {"said": world(2, work)}


if __name__ == "__main__":
    place = Path(sys.argv[2])
    os.chdir(place)
    torch.set_num_threads(1)
    result = {job.__name__: job for job in (evaluation, sums, union, uneven, nan)}[sys.argv[1]]()
    (place / "result.json").write_text(json.dumps(result))
