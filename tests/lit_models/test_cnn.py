"""LeNet and LitCNN."""

import pytest
import torch
import torch.nn.functional as F

from lit_models import LeNet, LitCNN, ModelError


@pytest.mark.parametrize(("channels", "count"), [(1, 61_706), (3, 62_006)])
def test_parameter_shapes_are_those_of_the_tutorial(channels: int, count: int) -> None:
    parameters = list(LeNet(channels).parameters())
    assert len(parameters) == 10
    assert parameters[0].shape == (6, channels, 5, 5)
    assert sum(parameter.numel() for parameter in parameters) == count
    if channels == 3:
        assert f"{count:,} at the defaults" in str(LeNet.__doc__)


@pytest.mark.parametrize("classes", [2, 10, 37])
def test_forward_equals_a_functional_computation(classes: int) -> None:
    net, x = LeNet(3, classes), torch.randn(4, 3, 32, 32)
    p = net.state_dict()
    assert list(p) == [
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3") for kind in ("weight", "bias")
    ]
    h = x
    for layer in ("conv1", "conv2"):
        patches = F.unfold(h, 5)  # (4, C * 25, places): a convolution is a matrix product of patches
        side = h.shape[-1] - 4
        maps = (p[f"{layer}.weight"].flatten(1) @ patches + p[f"{layer}.bias"][:, None]).view(4, -1, side, side)
        h = maps.clamp(min=0).view(4, -1, side // 2, 2, side // 2, 2).amax((3, 5))
    h = h.reshape(4, 400)
    for layer in ("fc1", "fc2"):
        h = (h @ p[f"{layer}.weight"].T + p[f"{layer}.bias"]).clamp(min=0)
    torch.testing.assert_close(net(x), h @ p["fc3.weight"].T + p["fc3.bias"], rtol=0, atol=1e-5)
    assert net(x).shape == (4, classes)


def test_a_single_picture_is_predicted_as_a_batch_of_one() -> None:
    model, x = LitCNN().eval(), torch.randn(3, 32, 32)
    with torch.no_grad():
        assert model.predict_step(x).shape == (1, 10)
        assert torch.equal(model.predict_step(x), model.predict_step(x.unsqueeze(0)))
        torch.testing.assert_close(model.predict_step(x).sum(), torch.tensor(1.0))


def test_loss_argument_sets_the_task() -> None:
    output, target = torch.randn(4, 10), torch.randn(4, 10)
    regression = LitCNN(loss="squared_error")
    assert (regression.task, LitCNN().task) == ("regression", "classification")
    torch.testing.assert_close(regression.loss(output, target), ((output - target) ** 2).mean())
    assert torch.equal(regression.predict_step(torch.zeros(1, 3, 32, 32)), regression(torch.zeros(1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"in_channels": 2}, "in_channels"), ({"num_classes": 0}, "num_classes"), ({"loss": "mse"}, "loss")],
)
def test_invalid_arguments_are_refused(arguments: dict, word: str) -> None:
    with pytest.raises(ModelError, match=f"--model.{word}"):
        LitCNN(**arguments)


def test_pictures_of_another_size_are_refused() -> None:
    assert LitCNN().shape_error((3, 32, 32)) is None
    assert LitCNN(in_channels=1).shape_error((1, 32, 32)) is None
    assert "(3, 28, 28)" in str(LitCNN().shape_error((3, 28, 28)))
