# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Several devices
#
# The network of the tutorial "Data Parallelism", 5 -> 2, with a batch of 30 rows shared by two devices. Here they are
# two processes on the CPU; on a machine with GPUs let `accelerator` be `"gpu"`.

# %%
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Trainer

import lit_training
from datamodules import RandomDataModule
from lit_models import LitMLP
from lit_training.callbacks.device_report import DeviceReport
from lit_training.cli.parser import silence_libraries
from lit_training.runs import checkpoints

silence_libraries()
torch.manual_seed(0)
accelerator, devices = "cpu", 2
model = LitMLP(in_features=5, hidden=(), out_features=2, lr=0.001)
data = RandomDataModule(in_features=5, out_features=2, length=100, batch_size=30 // devices, steps=0, target="linear")
before = model.net[0].weight.detach().clone()

# %% [markdown]
# ## In this notebook
#
# `ddp_notebook` forks a process for each device from this one and brings the trained weights back. Where processes
# cannot be forked (Windows) the same training runs as a command, and the weights come back in its checkpoint.
#
# Each device tells once what it got and gave ("In Model"), the first one what they did together ("Outside").

# %%
if "fork" in multiprocessing.get_all_start_methods():
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp_notebook",
        max_epochs=20,
        limit_val_batches=0,
        callbacks=[DeviceReport()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module deals the rows out itself
    )
    trainer.fit(model, data)
else:
    place = tempfile.mkdtemp()
    command = [sys.executable, str(Path(lit_training.__file__).parents[1] / "scripts" / "fit.py")]
    command += ["--model", "LitMLP", "--model.hidden", "[]", "--model.lr", "0.001", "--data.in_features", "5"]
    command += ["--data.out_features", "2", "--data.length", "100", "--data.steps", "0", "--data.target", "linear"]
    command += ["--data.batch_size", str(30 // devices), "--max_epochs", "20", "--default_root_dir", place]
    command += ["--accelerator", accelerator, "--devices", str(devices), "--strategy", "ddp"]
    command += ["--trainer.callbacks+", "lit_training.inspection.DeviceReport"]
    subprocess.run(command, check=True)
    model = checkpoints.load_model(checkpoints.read(checkpoints.find("latest", place)))

# %% [markdown]
# ## The trained model is here

# %%
with torch.no_grad():
    data.setup("validate")
    x, y = next(iter(data.val_dataloader()))
    output = model(x)
print(f"weights moved by up to {float((model.net[0].weight.detach() - before).abs().max()):.2f}")
print(f"mean squared error on rows it has not seen: {float((output - y).square().mean()):.4f}")
