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
# # The five networks, next to their raw loops
#
# Each section trains a network twice: in a loop written by hand, as its tutorial does, and in Lightning's `Trainer`.
# Both begin with the same weights and see the same batches, so they must end with the same weights, to the last bit.

# %%
import copy
import warnings
from itertools import islice

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from datamodules import RandomDataModule, ShapesDataModule
from lit_models import LitCNN, LitDynamic, LitMLP, LitTransfer
from lit_training.cli.parser import silence_libraries
from lit_training.trained.describe import describe

silence_libraries()
torch.manual_seed(0)


def batches(data, count):
    """The first batches that the Trainer will see."""
    data.setup("fit")
    return islice(data.train_dataloader(), count)


def fit(model, data, count, **options):
    """The same batches in Lightning's Trainer, with nothing around it."""
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu",
        limit_train_batches=count,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, data)


def compare(net, model, loss):
    """Whether two networks hold the same weights."""
    pairs = zip(net.parameters(), model.net.parameters(), strict=True)
    apart = max(float((mine - theirs).detach().abs().max()) for mine, theirs in pairs)
    assert apart == 0, apart
    print(f"last loss {loss:.4f}; largest difference of two weights: {apart}")


# %% [markdown]
# ## 1. LeNet
#
# Two convolutions, three linear layers; cross-entropy and SGD with momentum, as in "Training a Classifier".

# %%
model, data = LitCNN(), ShapesDataModule(train_size=200)
net = copy.deepcopy(model.net)
optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
for x, y in batches(data, 50):  # x: (4, 3, 32, 32), y: (4,)
    optimizer.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()

fit(model, data, 50)
compare(net, model, loss)

# %% [markdown]
# What it is made of, and the chain of nodes that `backward` follows from the loss:

# %%
print(describe(LitCNN(in_channels=1, loss="squared_error")))

# %% [markdown]
# ## 2. nn.Sequential
#
# 1000 -> 100 -> 10 with a ReLU between, one fixed batch of random numbers, the squared error summed, plain SGD, as in
# "Learning PyTorch with Examples".

# %%
model, data = LitMLP(), RandomDataModule()
net = copy.deepcopy(model.net)
optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
for x, y in batches(data, 50):  # x: (64, 1000), y: (64, 10)
    loss = F.mse_loss(net(x), y, reduction="sum")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

fit(model, data, 50)
compare(net, model, loss)

# %% [markdown]
# ## 3. A graph that changes
#
# The middle layer is used 0 to 3 times, drawn anew at each forward pass. With the same seed both loops draw the same.

# %%
model, data = LitDynamic(), RandomDataModule()
net = copy.deepcopy(model.net)
optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
torch.manual_seed(0)
for x, y in batches(data, 50):
    loss = F.mse_loss(net(x), y, reduction="sum")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

fit(model, data, 50)
compare(net, model, loss)

# %%
print(describe(model))

# %% [markdown]
# ## 4. One linear layer
#
# 5 -> 2, the network of "Data Parallelism"; notebook 3 puts it on several devices.

# %%
model = LitMLP(in_features=5, hidden=(), out_features=2)
data = RandomDataModule(in_features=5, out_features=2, length=100, batch_size=30, steps=0, target="linear")
net = copy.deepcopy(model.net)
optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
for x, y in batches(data, 4):  # x: (30, 5), at last (10, 5); y: (30, 2)
    loss = F.mse_loss(net(x), y, reduction="sum")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

fit(model, data, 4)
compare(net, model, loss)

# %% [markdown]
# ## 5. Transfer
#
# A ResNet-18 whose last layer is new and learns alone. The frozen part gets no gradient and stays in evaluation mode.
# Here its weights are random, so that the notebook needs no download; `weights="DEFAULT"` takes the published ones.

# %%
warnings.filterwarnings("ignore", message="weights=None with freeze")  # on purpose
model, data = LitTransfer(weights=None), ShapesDataModule(train_size=32)
net = copy.deepcopy(model.net).requires_grad_(False).eval()
net.fc.requires_grad_(True)
optimizer = torch.optim.SGD(net.fc.parameters(), lr=0.001, momentum=0.9)
for x, y in batches(data, 8):
    optimizer.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()

fit(model, data, 8)
compare(net, model, loss)

# %% [markdown]
# ## Several backward passes before one step
#
# `backward` adds to the gradients that are there. Four batches of 4 with their losses divided by four, and then one
# step, are one batch of 16. In Lightning that is `accumulate_grad_batches=4`.

# %%
model, data = LitCNN(), ShapesDataModule(train_size=160)
net = copy.deepcopy(model.net)
optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
for number, (x, y) in enumerate(batches(data, 40), start=1):
    loss = F.cross_entropy(net(x), y)
    (loss / 4).backward()
    if number % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()

fit(model, data, 40, accumulate_grad_batches=4)
compare(net, model, loss)
