"""Reference models: the networks that papers on sparse training report, at the sizes they use.

Each is a function of ``num_classes`` and ``in_channels``; those whose first layer depends on it
take ``image_size`` too. Weights are random. ``st3fx:NAME`` is their SPEC.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from st3fx.layers import CifarResNet, RowLstm, WideBlock, conv_norm_relu, kaiming


def resnet20(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-20 for CIFAR, 0.27 M parameters (He et al. 2015, Deep residual learning, 4.2)."""
    return CifarResNet(3, num_classes, in_channels)


def resnet32(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-32 for CIFAR, 0.46 M parameters (He et al. 2015, Deep residual learning, 4.2)."""
    return CifarResNet(5, num_classes, in_channels)


def resnet56(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-56 for CIFAR, 0.85 M parameters (He et al. 2015, Deep residual learning, 4.2)."""
    return CifarResNet(9, num_classes, in_channels)


def vgg19_bn(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """VGG-19 with batch norm for small images, 20.0 M parameters.

    Configuration E of Simonyan and Zisserman 2014 with a global pool and one linear layer in place
    of the three, as papers on pruning train it on CIFAR (Liu et al. 2017, Network slimming).
    """
    layers: list[nn.Module] = []
    for depth, width in ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += conv_norm_relu(in_channels, width, 3)
            in_channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes)]
    model = nn.Sequential(*layers, *head)
    kaiming(model)
    return model


def wide_resnet(
    *, num_classes: int = 10, in_channels: int = 3, depth: int = 28, width: int = 10
) -> nn.Module:
    """Wide residual network, WRN-28-10 with 36.5 M parameters by default.

    Source: Zagoruyko and Komodakis 2016, without dropout.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the input.
        depth: Convolutions on the longest path; 6 n + 4.
        width: Factor of the widths 16, 32 and 64.

    Raises:
        ValueError: When the depth is not 6 n + 4.
    """
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ValueError(f"depth is {depth}; it must be 6 n + 4, e.g. 16, 22, 28 or 40")
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)]
    width_in = 16
    for stage, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(blocks):
            layers.append(WideBlock(width_in, stage * width, stride if block == 0 else 1))
            width_in = stage * width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, num_classes)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(width_in), nn.ReLU(), *head)
    kaiming(model)
    return model


def mobilenet_v1(
    *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, stem_stride: int = 1
) -> nn.Module:
    """MobileNet, 3.2 M parameters with ten classes (Howard et al. 2017, table 1).

    Args:
        num_classes: Outputs.
        in_channels: Channels of the input.
        width: The paper's multiplier α; widths are rounded down.
        stem_stride: Of the first convolution: 1 for images of about 32 pixels, 2 as in the paper
            for those of 224.
    """
    stages = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    stages += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    size = int(32 * width)
    layers = conv_norm_relu(in_channels, size, 3, stem_stride)
    for base, stride in stages:
        layers += conv_norm_relu(size, size, 3, stride, groups=size)
        layers += conv_norm_relu(size, int(base * width), 1)
        size = int(base * width)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(size, num_classes)]
    model = nn.Sequential(*layers, *head)
    kaiming(model)
    return model


def lenet_300_100(
    *, num_classes: int = 10, in_channels: int = 1, image_size: int = 28
) -> nn.Module:
    """Two hidden layers of 300 and 100 units, 0.27 M parameters (LeCun et al. 1998, III.C.5)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )


def lstm_rows(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    hidden: int = 128,
    layers: int = 2,
) -> nn.Module:
    """LSTM over the rows of an image, 0.21 M parameters (Liu et al. 2020, Dynamic sparse training).

    Args:
        num_classes: Outputs.
        in_channels: Channels of the input.
        image_size: Width of the images in pixels.
        hidden: Size of each layer's state; the paper has 128 and 256.
        layers: How many lie above one another.
    """
    return RowLstm(in_channels * image_size, hidden, layers, num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "vgg19_bn": vgg19_bn,
    "wide_resnet": wide_resnet,
    "mobilenet_v1": mobilenet_v1,
    "lenet_300_100": lenet_300_100,
    "lstm_rows": lstm_rows,
}
"""Name -> function."""
